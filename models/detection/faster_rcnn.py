"""Faster R-CNN (Ren et al., NeurIPS 2015) in the forms that it was published in."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import nn

from errors import UserError
from models.backbones.resnet import ResNet
from models.backbones.timm_backbone import TimmBackbone
from models.detection.box_heads import ConvFCHead, ResNetHead, VGGHead
from models.detection.proposals import ProposalSelector
from models.detection.roi_extractor import RoIExtractor
from models.detection.roi_head import RoIHead
from models.detection.rpn import RPN
from models.detection.sampler import RandomSampler
from models.detection.sized_anchors import SizedAnchors
from models.detection.two_stage import TwoStageDetector
from models.necks.fpn import FPN
from models.necks.normalised_fpn import NormalisedFPN

Norm = Literal["frozen", "batch"]


class Parts(NamedTuple):
    """What a `TwoStageDetector` is composed of."""

    backbone: nn.Module
    neck: Callable[[list[int]], nn.Module] | None
    rpn: Callable[[int], nn.Module]
    roi_head: Callable[[int, int], nn.Module]


def resnet_fpn(pretrained: bool, norm: Norm) -> Parts:
    """detectron2's ResNet-50 with FPN (Lin et al., FPN, section 5)."""
    return Parts(_resnet((1, 2, 3, 4), pretrained, norm), partial(FPN, extra="pool"), RPN, RoIHead)


def torchvision_v1(pretrained: bool, norm: Norm) -> Parts:
    """Torchvision's `fasterrcnn_resnet50_fpn`."""
    return Parts(
        _resnet((1, 2, 3, 4), pretrained, norm),
        partial(FPN, extra="pool"),
        partial(_torchvision_rpn, convs=1),
        _torchvision_roi_head,
    )


def torchvision_v2(pretrained: bool, norm: Norm) -> Parts:
    """Torchvision's `fasterrcnn_resnet50_fpn_v2`: more convolutions, batch normalisation everywhere."""
    return Parts(
        _resnet((1, 2, 3, 4), pretrained, norm),
        NormalisedFPN,
        partial(_torchvision_rpn, convs=2),
        partial(_torchvision_roi_head, box_head=ConvFCHead),
    )


def resnet_c4(pretrained: bool, norm: Norm) -> Parts:
    """detectron2's ResNet-50 on C4, the last stage being the head (He et al., ResNet, appendix A)."""
    return Parts(
        _resnet((3,), pretrained, norm),
        None,
        partial(
            RPN,
            anchors=SizedAnchors(strides=(16,), sizes=((32, 64, 128, 256, 512),)),
            selector=ProposalSelector(candidates=(12_000, 6000), max_proposals=(2000, 1000)),
        ),
        partial(
            RoIHead,
            extractor=RoIExtractor(strides=(16,), output_size=14),
            box_head=partial(ResNetHead, pretrained=pretrained, norm=norm),
        ),
    )


def vgg16(pretrained: bool, norm: Norm) -> Parts:
    """The paper's: VGG16 up to conv5_3, nine anchors, RoIPool, 128 regions per image, 300 proposals at test time."""
    return Parts(
        TimmBackbone("vgg16", out_indices=(4,), pretrained=pretrained),
        None,
        partial(
            RPN,
            anchors=SizedAnchors(strides=(16,), sizes=((128, 256, 512),)),
            selector=ProposalSelector(candidates=(12_000, 6000), max_proposals=(2000, 300), min_size=16),
            smooth_l1_beta=1 / 9,
        ),
        partial(
            RoIHead,
            extractor=RoIExtractor(strides=(16,), method="pool"),
            box_head=partial(VGGHead, pretrained=pretrained),
            sampler=RandomSampler(size=128, positive_fraction=0.25),
            smooth_l1_beta=1.0,
        ),
    )


class Form(NamedTuple):
    """A published network: its parts, and what was published of it."""

    parts: Callable[[bool, Norm], Parts]
    image_size: int  # the shorter side, in pixels
    norm: Norm
    parameters: int | None  # for 80 classes
    parameters_per_class: int
    results: dict[str, float]


# Rows of the predictors per class: one for the score and four for the box, each with a bias.
ROWS = 5
# torchvision's counts are for 90 classes and include four rows of box codes for the background, which nothing reads
# and which are left out here: 41,755,286 and 43,712,278 less 4 * 1025, and less 10 classes.
FORMS = {
    "fpn": Form(resnet_fpn, 800, "frozen", 41_699_936, ROWS * 1025, {"COCO val AP": 37.9}),
    "torchvision_v1": Form(
        torchvision_v1, 800, "frozen", 41_755_286 - 4 * 1025 - 51_250, ROWS * 1025, {"COCO val AP": 37.0}
    ),
    "torchvision_v2": Form(
        torchvision_v2, 800, "batch", 43_712_278 - 4 * 1025 - 51_250, ROWS * 1025, {"COCO val AP": 46.7}
    ),
    "c4": Form(resnet_c4, 800, "frozen", None, ROWS * 2049, {"COCO val AP": 35.7}),
    "vgg16": Form(vgg16, 600, "frozen", None, ROWS * 4097, {"VOC07 test mAP": 73.2, "COCO test-dev AP": 21.9}),
}


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN as published, any part of which can be replaced.

    Args:
        num_classes: K.
        form: a key of `FORMS`.
        pretrained_backbone: load ImageNet weights into the backbone, and into a head that is a part of it.
        norm: `frozen` makes the backbone's batch normalisation a fixed affine map, which needs pretrained weights;
            `batch` trains it; None is the form's.
        backbone: None is the form's, like the parts below; see `TwoStageDetector`.

    Raises:
        UserError: no such form.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        form: str = "fpn",
        pretrained_backbone: bool = False,
        norm: Norm | None = None,
        backbone: nn.Module | None = None,
        neck: Callable[[list[int]], nn.Module] | None = None,
        rpn: Callable[[int], nn.Module] | None = None,
        roi_head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"Faster R-CNN has no form {form!r}: choose one of {', '.join(FORMS)}")
        row = FORMS[form]
        parts = row.parts(pretrained_backbone, norm or row.norm)
        super().__init__(
            num_classes=num_classes,
            image_size=row.image_size,
            backbone=backbone or parts.backbone,
            neck=neck or parts.neck,
            rpn=rpn or parts.rpn,
            roi_head=roi_head or parts.roi_head,
        )
        self.form = form


def _resnet(stages: tuple[int, ...], pretrained: bool, norm: Norm) -> ResNet:
    """ResNet-50; the stem and the first stage are frozen where they hold something to keep."""
    frozen_stages = 2 if pretrained else 0
    return ResNet("resnet50", out_indices=stages, pretrained=pretrained, frozen_stages=frozen_stages, norm=norm)


def _torchvision_rpn(channels: int, *, convs: int) -> RPN:
    return RPN(
        channels,
        anchors=SizedAnchors(rounded=True),
        convs=convs,
        selector=ProposalSelector(max_proposals=(2000, 1000)),
        smooth_l1_beta=1 / 9,
    )


def _torchvision_roi_head(
    channels: int, num_classes: int, *, box_head: Callable[[int, int], nn.Module] | None = None
) -> RoIHead:
    return RoIHead(
        channels,
        num_classes,
        extractor=RoIExtractor(sampling_ratio=2, aligned=False),
        box_head=box_head,
        smooth_l1_beta=1 / 9,
    )
