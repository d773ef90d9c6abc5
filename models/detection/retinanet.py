"""RetinaNet (Lin et al.: "Focal Loss for Dense Object Detection", ICCV 2017) in the forms that it was published in."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from errors import UserError
from models.backbones.resnet import ResNet
from models.detection.anchors import Anchors
from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.converters.torchvision_retinanet import from_torchvision_retinanet
from models.detection.dense_heads.retinanet_head import RetinaNetHead
from models.detection.losses.focal_loss import FocalLoss
from models.detection.losses.iou_loss import GIoULoss
from models.detection.losses.normalisers import MovingAverage, Normaliser, PerImage
from models.detection.losses.smooth_l1_loss import SmoothL1Loss
from models.detection.low_quality_matcher import LowQualityMatcher
from models.detection.matcher import AnchorMatcher
from models.detection.one_stage import OneStageDetector
from models.detection.postprocessing.nms import HardNMS
from models.detection.postprocessing.postprocess import DensePostprocessor, Postprocessor
from models.detection.sized_anchors import SizedAnchors
from models.necks import FPN, Neck

STRIDES = (8, 16, 32, 64, 128)
SIDES = tuple(tuple(4 * stride * 2 ** (octave / 3) for octave in range(3)) for stride in STRIDES)
PARAMETERS_PER_CLASS = 9 * (9 * 256 + 1)  # nine anchors, 3 x 3 kernels on 256 channels, a bias
MACS_PER_CLASS = (100**2 + 50**2 + 25**2 + 13**2 + 7**2) * 9 * 9 * 256  # at 800 pixels


class Form(NamedTuple):
    """A published network and what was published of it, for `num_classes` and inputs of 800 x 800 pixels.

    Detectron2 counts 146 GFLOPs of its convolutions, torchvision 151.54 and 152.238 G of everything (all
    multiply-accumulates).
    """

    extra: Literal["conv_c5", "conv_p5"]  # where P6 comes from
    norm: Literal["frozen", "batch"]  # of the backbone
    norm_eps: float  # of weights that were trained as a detector
    head_norm: Literal["group"] | None
    anchors: Callable[[], Anchors]
    box_loss: Callable[[], nn.Module]
    normaliser: Callable[[], Normaliser]
    max_detections: int
    num_classes: int
    parameters: int
    macs: int
    results: dict[str, float]


_torchvision_anchors = partial(
    SizedAnchors,
    strides=STRIDES,
    sizes=[[int(side) for side in level] for level in SIDES],
    rounded=True,
    fitted=True,
)

FORMS = {
    "detectron2": Form(
        "conv_c5",
        "frozen",
        1e-5,
        None,
        partial(SizedAnchors, strides=STRIDES, sizes=SIDES),
        SmoothL1Loss,
        MovingAverage,
        100,
        80,
        37_915_572,
        146_000_000_000,
        {"COCO val AP": 37.4},
    ),
    "torchvision_v1": Form(
        "conv_p5",
        "frozen",
        0.0,
        None,
        _torchvision_anchors,
        SmoothL1Loss,
        PerImage,
        300,
        91,
        34_014_999,
        151_540_000_000,
        {"COCO val AP": 36.4},
    ),
    "torchvision_v2": Form(
        "conv_c5",
        "batch",
        1e-5,
        "group",
        _torchvision_anchors,
        GIoULoss,
        PerImage,
        300,
        91,
        38_198_935,
        152_238_000_000,
        {"COCO val AP": 41.5},
    ),
}


class RetinaNet(OneStageDetector):
    """RetinaNet as published, any part of which can be replaced.

    Args:
        num_classes: K; torchvision's published networks have 91 (the background and COCO's category ids).
        form: a key of `FORMS`: detectron2 has P6 on C5 as the paper, L1 on the codes and a moving average of positives;
            torchvision's first P6 on P5, rounded anchors and losses divided image by image; its second P6 on C5, group
            normalisation in the head and the GIoU loss, too.
        pretrained_backbone: load ImageNet weights into the form's ResNet-50, and freeze its stem and first stage.
        norm: `frozen` makes the backbone's batch normalisation a fixed affine map, which needs pretrained weights;
            `batch` trains it; None is the form's.
        image_size: side in pixels of the input.
        backbone: None is the form's, like the parts below; see `OneStageDetector`.
        neck: called with the backbone's channels.
        head: called with (channels, levels, anchors per cell, K).
        anchors: nine per cell of each of five levels.
        matcher: positive from an overlap of .5, negative below .4.
        box_coder: unweighted x, y, w, h.
        class_loss: the ablation of table 1: `FocalLoss(gamma=0, alpha=.75)` is the balanced cross entropy.
        box_loss: of codes or boxes.
        normaliser: what losses are divided by.
        postprocessor: the best 1000 of each level above a score of .05, suppressed at an overlap of .5.
        size_divisor: height and width of an input must be multiples of it; None is what the neck needs.

    Raises:
        UserError: no such form.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        form: str = "detectron2",
        pretrained_backbone: bool = False,
        norm: Literal["frozen", "batch"] | None = None,
        image_size: int = 800,
        backbone: nn.Module | None = None,
        neck: Callable[[list[int]], Neck] | None = None,
        head: Callable[[int, int, int, int], nn.Module] | None = None,
        anchors: Anchors | None = None,
        matcher: AnchorMatcher | None = None,
        box_coder: BoxCoder | None = None,
        class_loss: FocalLoss | None = None,
        box_loss: nn.Module | None = None,
        normaliser: Normaliser | None = None,
        postprocessor: DensePostprocessor | None = None,
        size_divisor: int | None = None,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"RetinaNet has no form {form!r}: choose one of {', '.join(FORMS)}")
        row = FORMS[form]
        as_published = norm in (None, row.norm) and backbone is neck is head is anchors is None and image_size == 800
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            backbone=backbone or _resnet(row, pretrained_backbone, norm or row.norm),
            neck=neck or partial(FPN, extra=row.extra),
            head=head or partial(RetinaNetHead, norm=row.head_norm),
            anchors=anchors or row.anchors(),
            matcher=matcher or LowQualityMatcher(positive_iou=0.5, negative_iou=0.4),
            box_coder=box_coder or BoxCoder(y_first=False, max_log_ratio=MAX_LOG_RATIO),
            class_loss=class_loss or FocalLoss(gamma=2.0),
            box_loss=box_loss or row.box_loss(),
            normaliser=normaliser or row.normaliser(),
            postprocessor=postprocessor
            or Postprocessor(
                candidates=1000,
                per_level=True,
                score_threshold=0.05,
                nms=HardNMS(iou_threshold=0.5),
                max_detections=row.max_detections,
            ),
            box_weight=1.0,
            size_divisor=size_divisor,
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
        counts = {
            "parameters": row.parameters + more * PARAMETERS_PER_CLASS,
            "macs": row.macs + more * MACS_PER_CLASS,
        }
        return {**counts, **row.results}

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reads torchvision's `retinanet_resnet50_fpn` and `..._v2` weights; see `Detector`."""
        return from_torchvision_retinanet(state) if "head.classification_head.cls_logits.weight" in state else state


def _resnet(row: Form, pretrained: bool, norm: Literal["frozen", "batch"]) -> ResNet:
    """ResNet-50; the stem and the first stage are frozen where they hold something to keep."""
    return ResNet(
        "resnet50",
        pretrained=pretrained,
        frozen_stages=2 if pretrained else 0,
        norm=norm,
        norm_eps=1e-5 if pretrained else row.norm_eps,
    )
