import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from models.detection.losses import focal_loss as focal_module
from models.detection.losses.focal_loss import FocalLoss
from models.detection.losses.huber_loss import HuberLoss
from models.detection.matcher import IGNORED, NEGATIVE
from models.loss_term import LossTerm


def reference(logits, labels, alpha, gamma):
    """The elementwise loss of torchvision on one-hot targets, (B,)."""
    logits = torch.cat(logits, 1)
    targets = torch.zeros_like(logits)
    for b, a in (labels >= 0).nonzero().tolist():
        targets[b, a, labels[b, a]] = 1
    loss = sigmoid_focal_loss(logits, targets, alpha, gamma)
    return (loss * (labels != IGNORED)[..., None]).sum((1, 2))


def sample():
    torch.manual_seed(0)
    logits = [4 * torch.randn(2, n, 7, dtype=torch.float64) for n in (40, 10)]
    labels = torch.randint(IGNORED, 7, (2, 50))
    return logits, labels


def test_focal_loss_of_one_place():
    p = 0.3
    logit = math.log(p / (1 - p))
    loss = FocalLoss()([torch.tensor([[[logit]]])], torch.tensor([[0]]))
    assert loss.item() == pytest.approx(0.25 * 0.7**1.5 * -math.log(0.3), rel=1e-6)
    loss = FocalLoss()([torch.tensor([[[logit]]])], torch.tensor([[NEGATIVE]]))
    assert loss.item() == pytest.approx(0.75 * 0.3**1.5 * -math.log(0.7), rel=1e-6)


@pytest.mark.parametrize("slice_elements", [30, 2**16])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (0.25, 2.0), (0.5, 1.0)])
def test_focal_loss_and_gradient_are_torchvisions(alpha, gamma, slice_elements, monkeypatch):
    monkeypatch.setitem(focal_module.SLICE_ELEMENTS, "cpu", slice_elements)
    logits, labels = sample()
    theirs = [x.clone().requires_grad_() for x in logits]
    expected = reference(theirs, labels, alpha, gamma)
    factors = torch.tensor([0.3, 2.0])
    (expected * factors).sum().backward()
    ours = [x.float().requires_grad_() for x in logits]
    loss = FocalLoss(alpha=alpha, gamma=gamma)(ours, labels)
    (loss * factors).sum().backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-7)


def test_focal_loss_of_extreme_logits_is_finite():
    x = torch.tensor([[[-1e4, -100.0, 100.0, 1e4]]], requires_grad=True)
    loss = FocalLoss()([x], torch.tensor([[0]]))
    loss.sum().backward()
    # own class: .25 * 1 * 1e4; the others .75 * p^1.5 * softplus
    assert loss.item() == pytest.approx(0.25 * 1e4 + 0.75 * (100 + 1e4))
    torch.testing.assert_close(x.grad, torch.tensor([[[-0.25, 0, 0.75, 0.75]]]))


def test_focal_loss_takes_bfloat16_and_computes_in_float32():
    logits, labels = sample()
    low = [x.bfloat16().requires_grad_() for x in logits]
    loss = FocalLoss()(low, labels)
    expected = reference([x.detach().double() for x in low], labels, 0.25, 1.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    loss.sum().backward()
    assert low[0].grad.dtype == torch.bfloat16


def test_focal_loss_gradient_does_not_change_on_a_second_pass():
    logits, labels = sample()
    x = logits[0].float().requires_grad_()
    loss = FocalLoss()([x], labels[:, :40]).sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)


def test_huber_loss_in_both_regimes():
    targets = torch.tensor([[[0.05, 1.0, 0.0, -0.5], [1, 1, 1, 1]]])
    codes = torch.tensor([[[0.0, 0.5, 9.0, -0.5], [0, 0, 0, 0]]])
    positive = torch.tensor([[True, False]])
    # .5 * .05^2 within delta; .1 * (.5 - .05) beyond; a target of 0 does not count; the second anchor neither.
    expected = (0.5 * 0.05**2 + 0.1 * (0.5 - 0.05)) / 4
    assert HuberLoss()(codes, targets, positive).tolist() == pytest.approx([expected])


def test_loss_term_is_a_ratio_of_sums():
    term = LossTerm(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0]), 50.0, 1.0)
    assert term.value().item() == pytest.approx(50 * 4 / 8)
