"""RetinaNet's forms, parts and ablations; parity with torchvision is in tests/parity."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from errors import UserError
from models.backbones.resnet import ResNet
from models.backbones.timm_backbone import TimmBackbone
from models.detection.dense_heads.retinanet_head import RetinaNetHead
from models.detection.losses.focal_loss import FocalLoss
from models.detection.losses.iou_loss import GIoULoss
from models.detection.losses.normalisers import MovingAverage, PerBatch, PerImage
from models.detection.losses.smooth_l1_loss import SmoothL1Loss
from models.detection.matcher import NEGATIVE
from models.detection.retinanet import FORMS, RetinaNet
from models.detection.sized_anchors import SizedAnchors
from models.necks import FPN
from tools.model_table import count_macs

TARGETS = {
    "boxes": torch.tensor([[[10.0, 20, 60, 60], [0, 0, 0, 0]], [[5, 5, 120, 60], [80, 10, 127, 50]]]),
    "labels": torch.tensor([[2, -1], [0, 1]]),
    "iscrowd": torch.zeros(2, 2, dtype=torch.bool),
}
SIZE = torch.tensor([[64, 128]] * 2)


def tiny(**options):
    torch.manual_seed(0)
    backbone = options.pop("backbone", None) or ResNet("resnet18", norm="batch", frozen_stages=0)
    return RetinaNet(num_classes=3, backbone=backbone, **{"neck": partial(FPN, channels=64)} | options)


def step(network):
    """One training step's losses and gradient, and detections."""
    outputs = network.train()(torch.randn(2, 3, 64, 128))
    terms = network.loss_terms(outputs, TARGETS, SIZE)
    sum(term.value() for term in terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert network.detect(outputs, SIZE)["boxes"].shape[::2] == (2, 4)
    return outputs, terms


@pytest.mark.parametrize(
    ("form", "num_classes", "parameters", "macs"),
    [
        ("detectron2", 80, 37_915_572, 146.0e9),
        ("torchvision_v1", 91, 34_014_999, 151.54e9),
        ("torchvision_v2", 91, 38_198_935, 152.238e9),
    ],
)
def test_published_counts(form, num_classes, parameters, macs):
    with torch.device("meta"):
        network = RetinaNet(num_classes=num_classes, form=form)
        other = RetinaNet(num_classes=20, form=form)
    assert sum(p.numel() for p in network.parameters()) == parameters == network.published["parameters"]
    assert sum(p.numel() for p in other.parameters()) == other.published["parameters"]
    assert network.published["macs"] == pytest.approx(macs)
    assert count_macs(network, 800) == pytest.approx(macs, rel=0.03)
    assert network.published["COCO val AP"] == FORMS[form].results["COCO val AP"]


def test_backbone_of_detectron2():
    with torch.device("meta"):
        network = RetinaNet(num_classes=80)
    counted = (network.backbone, network.neck)
    assert sum(p.numel() for part in counted for p in part.parameters()) == 31_452_352


def test_nothing_is_published_of_a_network_of_other_parts():
    with torch.device("meta"):
        assert RetinaNet(num_classes=3, norm="batch").published == {}
    assert tiny().published == {}


def test_unknown_form():
    with pytest.raises(UserError, match="RetinaNet has no form 'mmdet': choose one of detectron2, torchvision_v1"):
        RetinaNet(num_classes=3, form="mmdet")


def test_anchors_of_the_paper():
    anchors = RetinaNet(num_classes=1).anchors([(100, 100), (50, 50), (25, 25), (13, 13), (7, 7)])
    assert anchors.shape == (9 * (10_000 + 2500 + 625 + 169 + 49), 4)
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
    assert sides.min().item() == pytest.approx(32) and sides.max().item() == pytest.approx(512 * 2 ** (2 / 3))
    assert anchors[1].tolist() == [-16, -16, 16, 16]  # centred at the corner of the first cell; ratios .5, 1, 2


def test_torchvisions_cells_are_spread_over_the_input():
    sides = ((8,), (16,), (32,))
    plain, fitted = (SizedAnchors(strides=(8, 16, 32), sizes=sides, ratios=(1,), fitted=f) for f in (False, True))
    maps = [(12, 4), (6, 2), (3, 1)]  # 96 x 32 pixels
    assert torch.equal(plain(maps), fitted(maps))
    maps = [(10, 4), (5, 2), (3, 1)]  # 80 pixels are three cells of 26
    centres = (fitted(maps)[-3:, 1] + fitted(maps)[-3:, 3]) / 2
    assert centres.tolist() == [0, 26, 52]
    assert ((plain(maps)[-3:, 1] + plain(maps)[-3:, 3]) / 2).tolist() == [0, 32, 64]


def test_every_class_starts_at_its_prior():
    network = tiny()
    assert torch.sigmoid(network.head.class_net.predict.bias).tolist() == pytest.approx([0.01] * 27)
    logits = torch.cat(network(torch.zeros(1, 3, 64, 64))["class_logits"], 1)
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.003)


def test_gamma_zero_is_balanced_cross_entropy():
    logits, labels = torch.randn(2, 6, 3), torch.tensor([[0, NEGATIVE, 2, 1, NEGATIVE, 0]] * 2)
    one_hot = torch.zeros(2, 6, 3)
    one_hot[labels >= 0] = nn.functional.one_hot(labels[labels >= 0], 3).float()
    weight = 0.75 * one_hot + 0.25 * (1 - one_hot)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, one_hot, weight, reduction="none").sum((1, 2))
    x = logits.clone().requires_grad_()
    found = FocalLoss(gamma=0.0, alpha=0.75)([x], labels)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    torch.testing.assert_close(x.grad, weight * (logits.sigmoid() - one_hot))


def test_giou_loss_and_gradient_are_torchvisions():
    torch.manual_seed(0)
    corner = 50 * torch.rand(2, 2, 40, 2)
    boxes, targets = torch.cat([corner, corner + 1 + 30 * torch.rand(2, 2, 40, 2)], -1)
    positive = torch.rand(2, 40) < 0.5
    ours, theirs = (boxes.clone().requires_grad_() for _ in range(2))
    found = GIoULoss()(ours, targets, positive)
    expected = torch.stack(
        [generalized_box_iou_loss(theirs[i][p], targets[i][p]).sum() for i, p in enumerate(positive)]
    )
    torch.testing.assert_close(found, expected)
    (found.sum() + expected.sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_giou_loss_of_boxes_apart():
    boxes, targets = torch.tensor([[[0.0, 0, 1, 1]]]), torch.tensor([[[3.0, 0, 4, 1]]])
    loss = GIoULoss()(boxes, targets, torch.tensor([[True]]))
    assert loss.tolist() == pytest.approx([1 + 2 / 4])  # half of the box around both is empty


def test_smooth_l1_loss():
    codes, targets = torch.tensor([[[0.0, 0, 0, 0], [1, 1, 1, 1]]]), torch.tensor([[[0.2, -0.5, 3, 0], [9, 9, 9, 9]]])
    positive = torch.tensor([[True, False]])
    assert SmoothL1Loss()(codes, targets, positive).tolist() == pytest.approx([3.7])
    assert SmoothL1Loss(beta=1.0)(codes, targets, positive).tolist() == pytest.approx([0.02 + 0.125 + 2.5])


def divided(normaliser, losses, counts, training=True):
    factor, denominator, offset = normaliser(torch.tensor(counts), training)
    return ((torch.tensor(losses) * factor).sum() / (denominator.sum() + offset)).item()


def test_normalisers():
    assert divided(PerBatch(), [6.0, 2.0], [3.0, 1.0]) == pytest.approx(8 / 4)
    assert divided(PerBatch(offset=1), [6.0, 2.0], [3.0, 1.0]) == pytest.approx(8 / 5)
    assert divided(PerBatch(), [6.0, 2.0], [0.0, 0.0]) == pytest.approx(8)
    assert divided(PerImage(), [6.0, 2.0], [3.0, 0.0]) == pytest.approx((6 / 3 + 2 / 1) / 2)
    average = MovingAverage(initial=100, momentum=0.9)
    assert divided(average, [6.0, 2.0], [3.0, 1.0], training=False) == pytest.approx(8 / 4)
    assert divided(average, [6.0, 2.0], [3.0, 1.0]) == pytest.approx(8 / 90.4)
    assert divided(average, [6.0, 2.0], [0.0, 0.0]) == pytest.approx(8 / (0.9 * 90.4 + 0.1))
    assert list(average.state_dict()) == ["average"]  # a resumed training goes on with it


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("form", ["detectron2", "torchvision_v2"])
def test_batches_without_objects(form, count):
    network = tiny(form=form)
    targets = {
        "boxes": torch.zeros(2, count, 4),
        "labels": torch.full((2, count), -1),
        "iscrowd": torch.zeros(2, count, dtype=torch.bool),
    }
    terms = network.loss_terms(network(torch.randn(2, 3, 64, 64)), targets, torch.full((2, 2), 64))
    assert terms["box_loss"].value() == 0 and 0 < terms["class_loss"].value() < math.inf
    sum(term.value() for term in terms.values()).backward()


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "efficientnet_lite0"])
def test_backbones(name):
    step(tiny(backbone=TimmBackbone(name, out_indices=(2, 3, 4)), image_size=64))


def test_inputs_need_be_multiples_of_the_necks_stride():
    network = tiny()
    assert network.size_divisor == 32  # 800 pixels will do, though the coarsest level has a stride of 128
    with pytest.raises(UserError, match=r"an input of 64 x 80 pixels does not suit RetinaNet: .* multiples of 32"):
        network(torch.zeros(1, 3, 64, 80))


def test_it_learns_two_pictures():
    network = tiny(
        head=partial(RetinaNetHead, repeats=1, norm="group"),
        anchors=SizedAnchors(strides=(8, 16, 32, 64, 128), sizes=[[16.0 * 2**i] for i in range(5)]),
        normaliser=PerBatch(),
    )
    images = torch.randn(2, 3, 64, 128)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        terms = network.loss_terms(network.train()(images), TARGETS, SIZE)
        loss = sum(term.value() for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    found = network.detect(network(images), SIZE)
    assert found["labels"][0, 0] == 2 and set(found["labels"][1, :2].tolist()) == {0, 1}
    assert (found["boxes"][0, 0] - TARGETS["boxes"][0, 0]).abs().max() < 8
