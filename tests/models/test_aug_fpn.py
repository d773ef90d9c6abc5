"""AugFPN's three parts, and all of them in a two-stage detector."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from errors import UserError
from models.backbones.resnet import ResNet
from models.detection.roi.consistent_supervision import ConsistentRoIHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.detection.roi.roi_head import RoIHead
from models.detection.roi.soft_roi import SoftRoIExtractor
from models.detection.rpn import RPN
from models.detection.sampler import RandomSampler
from models.detection.two_stage import TwoStageDetector
from models.necks.aug_fpn import AugFPN, ResidualFeatureAugmentation
from models.necks.fpn import FPN

TARGETS = {
    "boxes": torch.tensor([[[10.0, 10, 50, 50]], [[0, 0, 60, 30]]]),
    "labels": torch.tensor([[2], [0]]),
    "iscrowd": torch.zeros(2, 1, dtype=torch.bool),
    "area": torch.full((2, 1), 1600.0),
}
SIZE = torch.tensor([[64, 64], [64, 64]])


def test_context_is_pooled_by_the_ratio_of_each_side():
    seen = []
    module = ResidualFeatureAugmentation(2, 3)
    for conv in module.lateral:
        conv.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[-2:])))
    assert module(torch.randn(1, 2, 30, 12)).shape == (1, 3, 30, 12)
    assert seen == [(3, 1), (6, 2), (9, 3)]


def test_contexts_are_mixed_by_their_weights():
    torch.manual_seed(0)
    module = ResidualFeatureAugmentation(2, 3, ratios=(0.1, 0.5))
    module.weights[2].weight.data.zero_()
    module.weights[2].bias.data = torch.tensor([0.0, 30.0])  # one half and one
    x = torch.randn(1, 2, 4, 4)
    whole = module.lateral[0](x.mean((2, 3), keepdim=True))
    halves = F.interpolate(module.lateral[1](F.avg_pool2d(x, 2)), scale_factor=2, mode="bilinear", align_corners=True)
    torch.testing.assert_close(module(x), whole / 2 + halves)


def test_neck_is_an_fpn_with_more_context_and_its_laterals():
    torch.manual_seed(0)
    neck, plain = AugFPN([2, 4, 6], channels=8), FPN([2, 4, 6], channels=8)
    plain.load_state_dict(neck.state_dict(), strict=False)
    x = [torch.randn(2, c, s, s) for c, s in ((2, 16), (4, 8), (6, 4))]
    pyramid = neck(x)
    for lateral, conv, feature in zip(pyramid.laterals, neck.lateral, x, strict=True):
        torch.testing.assert_close(lateral, conv(feature))
    neck.augmentation.lateral.requires_grad_(False)
    for conv in neck.augmentation.lateral:
        conv.weight.zero_(), conv.bias.zero_()
    for got, expected in zip(neck(x), plain(x), strict=True):
        torch.testing.assert_close(got, expected)
    assert not torch.allclose(pyramid[0], neck(x)[0])


def test_soft_selection_weighs_every_level():
    torch.manual_seed(0)
    pyramid = [torch.randn(2, 3, 64 // s, 64 // s) for s in (4, 8)]
    boxes = torch.tensor([[[4.0, 4, 40, 30], [0, 0, 60, 60]]]).repeat(2, 1, 1)
    extractor = SoftRoIExtractor(channels=3, strides=(4, 8), output_size=5)
    extractor.weights[2].weight.data.zero_()
    extractor.weights[2].bias.data = torch.tensor([0.0, 30.0])
    fine, coarse = (roi_align(x, list(boxes), 5, 1 / s, aligned=True) for x, s in zip(pyramid, (4, 8), strict=True))
    torch.testing.assert_close(extractor(pyramid, boxes, torch.ones(2, 2, dtype=torch.bool)), fine / 2 + coarse)


def detector(neck=AugFPN):
    return TwoStageDetector(
        num_classes=3,
        image_size=64,
        backbone=ResNet("resnet18", out_indices=(1, 2, 3, 4), frozen_stages=0),
        neck=lambda channels: neck(channels, channels=8, extra="pool"),
        rpn=RPN,
        roi_head=lambda channels, num_classes: ConsistentRoIHead(
            channels,
            num_classes,
            extractor=SoftRoIExtractor(channels=channels),
            sampler=RandomSampler(size=16, positive_fraction=0.25),
        ),
    )


def test_all_of_it_in_a_detector():
    torch.manual_seed(0)
    network = detector().train()
    outputs = network(torch.randn(2, 3, 64, 64))
    terms = network.loss_terms(outputs, TARGETS, SIZE)
    assert {"class_loss", "box_loss", "auxiliary_class_loss", "auxiliary_box_loss"} <= set(terms)
    sum(term.value() for term in terms.values()).backward()
    unused = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    replaced = network.class_parameters()
    assert "roi_head.auxiliary_predictor.classes.weight" in replaced
    assert set(replaced) <= {name for name, _ in network.named_parameters()}
    seen = []
    network.roi_head.auxiliary_head.register_forward_hook(lambda *_: seen.append(1))
    network.eval().detect(network(torch.randn(2, 3, 64, 64)), SIZE)
    assert not seen  # the second head only learns


def test_auxiliary_losses_are_those_of_a_plain_head_on_each_lateral():
    torch.manual_seed(0)
    network = detector().eval()
    outputs = network(torch.randn(2, 3, 64, 64))
    terms = network.loss_terms(outputs, TARGETS, SIZE)
    head = network.roi_head
    for name in ("class_loss", "box_loss"):
        expected = 0
        for lateral, stride in zip(outputs["features"].laterals, (4, 8, 16, 32), strict=True):
            plain = RoIHead(8, 3, extractor=RoIExtractor(strides=(stride,)), sampler=head.sampler).eval()
            plain.box_head, plain.predictor = head.auxiliary_head, head.auxiliary_predictor
            expected += plain.loss_terms([lateral], *outputs["proposals"], TARGETS, SIZE)[name].value()
        torch.testing.assert_close(terms[f"auxiliary_{name}"].value(), 0.25 * expected)


def test_other_necks_are_refused():
    network = detector(FPN).eval()
    with pytest.raises(UserError, match="AugFPN"):
        network.loss_terms(network(torch.randn(2, 3, 64, 64)), TARGETS, SIZE)
