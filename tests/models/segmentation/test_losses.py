"""Losses on pixels against loops that spell out their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.segmentation.losses import CrossEntropy, DiceLoss, FocalLoss, LovaszSoftmax, OhemCrossEntropy
from models.segmentation.segmenter import Segmenter

LOSSES = [
    CrossEntropy(),
    CrossEntropy(reduction="sum"),
    CrossEntropy(class_weights=(0.5, 1, 2, 3)),
    OhemCrossEntropy(),
    FocalLoss(),
    DiceLoss(),
    LovaszSoftmax(),
]


@pytest.fixture
def batch():
    torch.manual_seed(1)
    logits = 2 * torch.randn(3, 4, 6, 5)
    mask = torch.randint(3, (3, 6, 5))  # class 3 is absent
    mask[0, :2] = 255
    mask[1, :, 0] = 255
    return logits, mask


def value(loss, logits, mask):
    numerator, denominator = loss(logits, mask)
    assert numerator.shape == denominator.shape == (len(mask),)
    return (numerator.sum() / denominator.sum()).item()


def test_cross_entropy(batch):
    logits, mask = batch
    assert value(CrossEntropy(), *batch) == pytest.approx(F.cross_entropy(logits, mask, ignore_index=255).item())
    weights = torch.tensor([0.5, 1, 2, 3])
    expected = F.cross_entropy(logits, mask, weights, ignore_index=255).item()
    assert value(CrossEntropy(class_weights=weights.tolist()), *batch) == pytest.approx(expected)
    expected = F.cross_entropy(logits, mask, ignore_index=255, reduction="sum").item() / 3
    assert value(CrossEntropy(reduction="sum"), *batch) == pytest.approx(expected)


def test_focal(batch):
    logits, mask = batch
    losses = F.cross_entropy(logits, mask, ignore_index=255, reduction="none")[mask != 255]
    expected = ((1 - torch.exp(-losses)) ** 2 * losses).mean().item()
    assert value(FocalLoss(), *batch) == pytest.approx(expected, rel=1e-5)
    assert value(FocalLoss(gamma=0), *batch) == pytest.approx(value(CrossEntropy(), *batch), rel=1e-5)


def test_ohem_keeps_hard_pixels_and_at_least_a_share(batch):
    logits, mask = batch
    for threshold, share in ((0.7, 1 / 16), (0.05, 0.5), (0.001, 0.01)):
        kept = []
        for i in range(3):
            losses = F.cross_entropy(logits[i : i + 1], mask[i : i + 1], ignore_index=255, reduction="none")
            losses = sorted(losses[mask[i : i + 1] != 255].tolist(), reverse=True)
            least = max(int(share * len(losses)), 1)
            kept += [x for rank, x in enumerate(losses) if rank < least or x > -math.log(threshold)]
        loss = OhemCrossEntropy(threshold=threshold, min_kept=share)
        assert value(loss, logits, mask) == pytest.approx(sum(kept) / len(kept), rel=1e-5)


def test_dice(batch):
    logits, mask = batch
    images = []
    for i in range(3):
        labelled = mask[i] != 255
        p, t = logits[i].softmax(0)[:, labelled], F.one_hot(mask[i][labelled], 4).T
        per_class = [1 - (2 * (p[k] * t[k]).sum() + 1) / (p[k].sum() + t[k].sum() + 1) for k in range(4) if t[k].any()]
        images.append(sum(per_class).item() / len(per_class))
    assert value(DiceLoss(), *batch) == pytest.approx(sum(images) / 3, rel=1e-5)


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - IoU of a class, if the pixels `wrong` are predicted wrongly."""
    return len(wrong) / len(truth | wrong)


def test_lovasz_is_the_extension_of_the_jaccard_loss(batch):
    """Definition 1 of the paper: errors in descending order, each times what its pixel adds to the set function."""
    logits, mask = batch
    images = []
    for i in range(3):
        labelled = mask[i] != 255
        p, t = logits[i].softmax(0)[:, labelled], mask[i][labelled]
        per_class = []
        for k in range(4):
            truth = set(torch.nonzero(t == k).flatten().tolist())
            if not truth:
                continue
            errors = [(abs(float(k == label) - p[k, pixel].item()), pixel) for pixel, label in enumerate(t.tolist())]
            loss, wrong = 0.0, set()
            for error, pixel in sorted(errors, reverse=True):
                loss += error * (jaccard_loss(wrong | {pixel}, truth) - jaccard_loss(wrong, truth))
                wrong |= {pixel}
            per_class.append(loss)
        images.append(sum(per_class) / len(per_class))
    assert value(LovaszSoftmax(), *batch) == pytest.approx(sum(images) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_unlabelled_pixels_change_nothing(loss, batch):
    logits, mask = batch
    changed = logits.where((mask != 255)[:, None], 30 * torch.randn_like(logits))
    assert value(loss, changed, mask) == pytest.approx(value(loss, logits, mask), rel=1e-5)
    logits = logits.clone().requires_grad_()
    numerator, denominator = loss(logits, mask)
    (numerator.sum() / denominator.sum()).backward()
    assert not logits.grad[(mask == 255)[:, None].expand_as(logits)].any()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_images_do_not_see_one_another(loss, batch):
    logits, mask = batch
    whole = loss(logits, mask)
    for i in range(3):
        alone = loss(logits[i : i + 1], mask[i : i + 1])
        for a, b in zip(whole, alone, strict=True):
            assert a[i].item() == pytest.approx(b[0].item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_an_image_without_a_label(loss):
    numerator, denominator = loss(torch.randn(2, 4, 3, 3), torch.full((2, 3, 3), 255))
    assert not numerator.any()
    assert numerator.isfinite().all() and denominator.isfinite().all()


def test_terms_are_weighted_and_named():
    class Scores(Segmenter):
        def forward(self, images):
            return {}

    network = Scores(num_classes=4, image_size=8, losses=[CrossEntropy(), DiceLoss(weight=3)], auxiliary_weight=0.4)
    outputs = {"out": torch.randn(2, 4, 5, 5), "aux": torch.randn(2, 4, 5, 5)}
    terms = network.loss_terms(outputs, torch.randint(4, (2, 5, 5), dtype=torch.uint8))
    assert {name: term.weight for name, term in terms.items()} == {
        "cross_entropy": 1, "dice_loss": 3, "auxiliary_cross_entropy": 0.4, "auxiliary_dice_loss": pytest.approx(1.2)
    }  # fmt: skip
