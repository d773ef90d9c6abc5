"""Faster R-CNN (Ren et al., NeurIPS 2015) in the forms that it was published in."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from errors import UserError
from models.backbones.classic import VGG16
from models.backbones.resnet import ResNet
from models.detection.converters.torchvision_faster_rcnn import from_torchvision_faster_rcnn
from models.detection.postprocessing.nms import HardNMS
from models.detection.proposals import ProposalSelector
from models.detection.roi.box_heads import ConvFCHead, ResNetHead, VGGHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.detection.roi.roi_head import RoIHead
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.rpn import RPN
from models.detection.sampler import RandomSampler
from models.detection.sized_anchors import SizedAnchors
from models.detection.two_stage import TwoStageDetector
from models.necks import FPN, Neck, NormalisedFPN

Norm = Literal["frozen", "batch"]


class Parts(NamedTuple):
    """What a `TwoStageDetector` is composed of."""

    backbone: Callable[[], nn.Module]
    neck: Callable[[list[int]], Neck] | None
    rpn: Callable[[int], nn.Module]
    roi_head: Callable[[int, int], nn.Module]


def resnet_fpn(pretrained: bool, norm: Norm) -> Parts:
    """detectron2's ResNet-50 with FPN (Lin et al., FPN, section 5)."""
    return Parts(partial(resnet50, (1, 2, 3, 4), pretrained, norm), partial(FPN, extra="pool"), RPN, RoIHead)


def torchvision_v1(pretrained: bool, norm: Norm) -> Parts:
    """Torchvision's `fasterrcnn_resnet50_fpn`; its published weights were trained without an epsilon of the norms."""
    return Parts(
        partial(resnet50, (1, 2, 3, 4), pretrained, norm, norm_eps=1e-5 if pretrained else 0.0),
        partial(FPN, extra="pool"),
        partial(_torchvision_rpn, convs=1),
        _torchvision_roi_head,
    )


def torchvision_v2(pretrained: bool, norm: Norm) -> Parts:
    """Torchvision's `fasterrcnn_resnet50_fpn_v2`: more convolutions, batch normalisation everywhere."""
    return Parts(
        partial(resnet50, (1, 2, 3, 4), pretrained, norm),
        NormalisedFPN,
        partial(_torchvision_rpn, convs=2),
        partial(_torchvision_roi_head, box_head=ConvFCHead),
    )


def resnet_c4(pretrained: bool, norm: Norm) -> Parts:
    """detectron2's ResNet-50 on C4, the last stage being the head (He et al., ResNet, appendix A)."""
    return Parts(
        partial(resnet50, (3,), pretrained, norm),
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
    """The paper's: VGG16 up to conv5_3, nine anchors, RoIPool, 128 regions per image, 300 proposals at test time.

    `norm` says nothing here. The first four convolutions are frozen where they hold something to keep.
    """
    return Parts(
        partial(VGG16, frozen_convs=4 if pretrained else 0, pretrained=pretrained),
        None,
        partial(
            RPN,
            anchors=SizedAnchors(strides=(16,), sizes=((128, 256, 512),)),
            selector=ProposalSelector(candidates=(12_000, 6000), max_proposals=(2000, 300), min_size=16),
            smooth_l1_beta=1 / 9,
            inside=True,
        ),
        partial(
            RoIHead,
            extractor=RoIExtractor(strides=(16,), method="pool"),
            box_head=partial(VGGHead, pretrained=pretrained),
            sampler=RandomSampler(size=128, positive_fraction=0.25),
            postprocessor=RoIPostprocessor(nms=HardNMS(iou_threshold=0.3)),
            smooth_l1_beta=1.0,
        ),
    )


class Form(NamedTuple):
    """A published network: its parts, and what was published of it for `num_classes` (None where nobody did)."""

    parts: Callable[[bool, Norm], Parts]
    image_size: int  # the shorter side, in pixels; operations are counted for a square
    norm: Norm
    num_classes: int
    parameters: int | None
    macs: int | None
    results: dict[str, float]


# Rows of the predictors per class on 1024 channels: one for the score and four for the box.
ROWS = 5
PARAMETERS_PER_CLASS = ROWS * 1025
MACS_PER_CLASS = 1000 * ROWS * 1024  # for 1000 proposals
# The box head and the predictors of 80 classes on 1000 proposals.
SECOND_STAGE = 1000 * (49 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80))
# torchvision's published counts (41,755,286 and 43,712,278 parameters, 134.38 and 280.37 G) are for 91 classes, the
# background being one. Four rows of box codes for the background, which nothing reads, are left out here.
UNREAD = 4 * 1025
FORMS = {
    # detectron2 counts the convolutions alone, 117 G, and its ResNet strides in the first convolution of a block
    # where torchvision's does so in the second, which costs 3 G.
    "fpn": Form(resnet_fpn, 800, "frozen", 80, 41_699_936, 117_000_000_000 + SECOND_STAGE, {"COCO val AP": 37.9}),
    "torchvision_v1": Form(
        torchvision_v1, 800, "frozen", 90, 41_755_286 - UNREAD, 134_380_000_000, {"COCO val AP": 37.0}
    ),
    "torchvision_v2": Form(
        torchvision_v2, 800, "batch", 90, 43_712_278 - UNREAD, 280_370_000_000, {"COCO val AP": 46.7}
    ),
    "c4": Form(resnet_c4, 800, "frozen", 80, None, None, {"COCO val AP": 35.7}),
    "vgg16": Form(vgg16, 600, "frozen", 20, None, None, {"VOC07 test mAP": 73.2, "COCO test-dev AP": 21.9}),
}


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN as published, any part of which can be replaced.

    Args:
        num_classes: K; torchvision's published networks have 90 beside the background (COCO's category ids).
        form: a key of `FORMS`: `fpn` and `c4` are detectron2's, `torchvision_v1` and `torchvision_v2` torchvision's,
            `vgg16` the paper's.
        pretrained_backbone: load ImageNet weights into the backbone, and into a head that is a part of it.
        norm: `frozen` makes the backbone's batch normalisation a fixed affine map, which needs pretrained weights;
            `batch` trains it; None is the form's.
        image_size: side in pixels of the input; None is the form's.
        backbone: None is the form's, like the parts below; see `TwoStageDetector`. Another backbone that gives a
            pyramid already (`RecursivePyramid`) wants `IdentityNeck` as its neck.
        neck: called with the backbone's channels.
        rpn: called with the channels of the features.
        roi_head: called with (the channels of the features, K).

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
        image_size: int | None = None,
        backbone: nn.Module | None = None,
        neck: Callable[[list[int]], Neck] | None = None,
        rpn: Callable[[int], nn.Module] | None = None,
        roi_head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"Faster R-CNN has no form {form!r}: choose one of {', '.join(FORMS)}")
        row = FORMS[form]
        as_published = norm in (None, row.norm) and image_size in (None, row.image_size)
        as_published &= backbone is neck is rpn is roi_head is None
        parts = row.parts(pretrained_backbone, norm or row.norm)
        super().__init__(
            num_classes=num_classes,
            image_size=image_size or row.image_size,
            backbone=backbone or parts.backbone(),
            neck=neck or parts.neck,
            rpn=rpn or parts.rpn,
            roi_head=roi_head or parts.roi_head,
        )
        self.form = form
        self.as_published = as_published

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report, their counts for this number of classes; nothing for a network of other parts."""
        if not self.as_published:
            return {}
        row = FORMS[self.form]
        more = self.num_classes - row.num_classes
        counts = {}
        if row.parameters is not None:
            counts["parameters"] = row.parameters + more * PARAMETERS_PER_CLASS
        if row.macs is not None:
            counts["macs"] = row.macs + more * MACS_PER_CLASS
        return {**counts, **row.results}

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reads torchvision's `fasterrcnn_resnet50_fpn` and `..._v2` weights; see `Detector`."""
        known = "roi_heads.box_predictor.cls_score.weight" in state
        return from_torchvision_faster_rcnn(state) if known else state


def resnet50(stages: tuple[int, ...], pretrained: bool, norm: Norm, *, norm_eps: float = 1e-5) -> ResNet:
    """ResNet-50; the stem and the first stage are frozen where they hold something to keep."""
    frozen_stages = 2 if pretrained else 0
    return ResNet(
        "resnet50",
        out_indices=stages,
        pretrained=pretrained,
        frozen_stages=frozen_stages,
        norm=norm,
        norm_eps=norm_eps,
    )


def _torchvision_rpn(channels: int, *, convs: int) -> RPN:
    return RPN(
        channels,
        anchors=SizedAnchors(rounded=True, fitted=True),
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
