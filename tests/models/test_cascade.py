"""Resampling, losses and ensembles of the cascade."""

import pytest
import torch
from torch import nn

from models.detection.matcher import NEGATIVE
from models.detection.roi.cascade import CascadeRoIHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.detection.roi.roi_head import class_scores, refine
from models.detection.sampler import RandomSampler

SIZE = torch.tensor([[256, 200], [256, 256]])


class Flat(nn.Module):
    """A box head of few numbers: the pooled features themselves."""

    channels = 12

    def __init__(self, channels, size):
        super().__init__()

    def forward(self, x):
        return x.flatten(1)


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = CascadeRoIHead(
        3,
        2,
        extractor=RoIExtractor(output_size=2),
        box_head=Flat,
        sampler=RandomSampler(size=40, positive_fraction=0.9),
    )
    for stage in head.stages:
        nn.init.normal_(stage.predictor.box_codes.weight, std=0.5)
        nn.init.normal_(stage.predictor.classes.weight, std=1)
    return head.eval()


@pytest.fixture
def features():
    torch.manual_seed(1)
    return [torch.randn(2, 3, 256 // s, 256 // s) for s in (4, 8, 16, 32)]


@pytest.fixture
def boxes():
    torch.manual_seed(2)
    objects = torch.tensor([[10.0, 10, 60, 60], [50, 50, 150, 100]])
    return (objects[:, None] + torch.randn(2, 30, 4) * 8).clamp(0, 200)


@pytest.fixture
def targets():
    return {
        "boxes": torch.tensor([[[10.0, 10, 60, 60], [0, 0, 0, 0]], [[50, 50, 150, 100], [0, 0, 0, 0]]]),
        "labels": torch.tensor([[0, -1], [1, -1]]),
        "iscrowd": torch.zeros(2, 2).bool(),
        "area": torch.zeros(2, 2),
    }


VALID = torch.ones(2, 30, dtype=torch.bool)


def test_three_heads_of_the_paper():
    with torch.device("meta"):
        head = CascadeRoIHead(256, 80)
    assert sum(p.numel() for p in head.parameters()) == 41_948_415
    assert [coder.weights for coder in head.coders] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    assert len(head.class_parameters()) == 6 and set(head.class_parameters()) < set(head.state_dict())


def test_as_many_settings_as_stages():
    with pytest.raises(ValueError, match="each stage, got 2, 3 and 3"):
        CascadeRoIHead(3, 2, positive_ious=(0.5, 0.6))


def test_each_stage_is_trained_on_what_the_one_before_corrected(head, features, boxes, targets):
    stages = list(head.train_stages(features, boxes, VALID, targets, SIZE))
    assert len(stages) == 3
    for (samples, *_), positive_iou in zip(stages, (0.5, 0.6, 0.7), strict=True):
        positive = samples.labels >= 0
        assert positive.any() and (samples.iou[positive] >= positive_iou).all()
        assert (samples.iou[samples.taken & ~positive] < positive_iou).all()
        assert samples.is_object.sum(1).tolist() == [1, 1]
        assert not samples.boxes.requires_grad
    for stage, coder, after in zip(stages, head.coders, stages[1:], strict=False):
        corrected = refine(stage.samples.boxes, stage.logits, stage.codes, coder, SIZE)
        allowed = torch.cat([corrected, targets["boxes"]], 1)
        for image in range(2):
            given = after.samples.boxes[image][after.samples.taken[image]]
            assert (given[:, None] == allowed[image]).all(-1).any(1).all()
            # The object that the stage before was given has been corrected away; it is added anew, once.
            added = corrected[image][stage.samples.is_object[image]]
            assert not (given == added).all(-1).any()


def test_loss_of_every_stage(head, features, boxes, targets):
    terms = head.loss_terms(features, boxes, VALID, targets, SIZE)
    assert [(name, term.weight) for name, term in terms.items()] == [
        ("stage1_class_loss", 1.0),
        ("stage1_box_loss", 1.0),
        ("stage2_class_loss", 0.5),
        ("stage2_box_loss", 0.5),
        ("stage3_class_loss", 0.25),
        ("stage3_box_loss", 0.25),
    ]
    samples, logits, codes = list(head.train_stages(features, boxes, VALID, targets, SIZE))[2]
    labels = samples.labels.where(samples.labels >= 0, 2)
    chosen = -logits.log_softmax(-1).gather(2, labels[..., None]).squeeze(2)
    torch.testing.assert_close(terms["stage3_class_loss"].numerator, (chosen * samples.taken).sum(1))
    positive = samples.labels >= 0
    wanted = head.coders[2].encode(samples.goals[positive], samples.boxes[positive])
    loss = nn.functional.smooth_l1_loss(codes[positive].squeeze(-1), wanted, reduction="sum")
    torch.testing.assert_close(terms["stage3_box_loss"].numerator.sum(), loss)
    sum(term.value() for term in terms.values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_as_in_detectron2(head, features, boxes, targets):
    head.resample = False
    first, second, third = list(head.train_stages(features, boxes, VALID, targets, SIZE))
    assert first.samples.taken.sum(1).tolist() == second.samples.taken.sum(1).tolist() == [31, 31]
    for before, after, positive_iou in ((first, second, 0.6), (second, third, 0.7)):
        assert not after.samples.is_object.any()
        corrected = refine(before.samples.boxes, before.logits, before.codes, head.coders[before is second], SIZE)
        assert (after.samples.boxes[:, :, None] == corrected[:, None]).all(-1).any(2).all()
        assert torch.equal(after.samples.labels >= 0, after.samples.iou >= positive_iou)
    pooled = [x.requires_grad_() for x in features]
    gradients = []
    for factor in (1.0, 0.25):
        head.gradient_scale = factor
        loss = head.loss_terms(pooled, boxes, VALID, targets, SIZE)["stage2_class_loss"].value()
        gradients.append(torch.autograd.grad(loss, [pooled[0], head.stages[1].predictor.classes.weight]))
    torch.testing.assert_close(gradients[1][0], gradients[0][0] / 4)
    torch.testing.assert_close(gradients[1][1], gradients[0][1])


def test_no_gradient_passes_from_stage_to_stage(head, features, boxes, targets):
    terms = head.loss_terms(features, boxes, VALID, targets, SIZE)
    terms["stage3_class_loss"].value().backward()
    assert all(parameter.grad is None for parameter in head.stages[:2].parameters())


def test_an_image_without_objects(head, features, boxes, targets):
    targets["labels"][0] = -1
    terms = head.loss_terms(features, boxes, VALID, targets, SIZE)
    samples = next(head.train_stages(features, boxes, VALID, targets, SIZE)).samples
    assert (samples.labels[0] == NEGATIVE).all() and samples.taken[0].sum() == 30
    assert terms["stage2_box_loss"].numerator[0] == 0 < terms["stage2_box_loss"].numerator[1]


def given_boxes(head, features, boxes):
    """What each stage is given at test time."""
    given = [boxes]
    for stage, coder in zip(head.stages, head.coders, strict=True):
        logits, codes = stage(head.extractor(features, given[-1], VALID), VALID)
        given.append(refine(given[-1], logits, codes, coder, SIZE))
    return given[:-1]


def test_ensemble_scores_the_last_boxes(head, features, boxes):
    valid = VALID.clone()
    valid[0, 20:] = False
    given = given_boxes(head, features, boxes)
    runs = head.run_stages(features, boxes, VALID, SIZE)
    assert all(torch.equal(run.boxes, expected) for run, expected in zip(runs, given, strict=True))
    assert torch.equal(given[0], boxes) and not torch.equal(given[1], given[2])
    pooled = head.extractor(features, given[2], VALID)
    outputs = [stage(pooled, VALID) for stage in head.stages]
    mean = sum(class_scores(logits, valid) for logits, _ in outputs) / 3
    assert mean[0, 20:].abs().sum() == 0
    expected = head.postprocessor(mean, outputs[2][1], given[2], head.coders[2], SIZE)
    found = head.detect(features, boxes, valid, SIZE)
    for key in found:
        torch.testing.assert_close(found[key], expected[key])


def test_stage_by_stage(head, features, boxes):
    given = given_boxes(head, features, boxes)
    head.test_stages, head.scores = 2, "last_stage"
    first, _ = head.stages[0](head.extractor(features, given[0], VALID), VALID)
    logits, codes = head.stages[1](head.extractor(features, given[1], VALID), VALID)
    expected = head.postprocessor(class_scores(logits, VALID), codes, given[1], head.coders[1], SIZE)
    found = head.detect(features, boxes, VALID, SIZE)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    head.scores = "own_boxes"
    mean = (class_scores(first, VALID) + class_scores(logits, VALID)) / 2
    expected = head.postprocessor(mean, codes, given[1], head.coders[1], SIZE)
    found = head.detect(features, boxes, VALID, SIZE)
    assert all(torch.equal(found[key], expected[key]) for key in found)
