"""SSD300 and SSD512 (Liu et al.: "SSD: Single Shot MultiBox Detector", ECCV 2016)."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from errors import UserError
from models.backbones.ssd_vgg import EXTRAS_300, EXTRAS_512, SSDVGG, Extra
from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.converters.torchvision_ssd import from_torchvision_ssd
from models.detection.default_boxes import DefaultBoxes
from models.detection.dense_heads.ssd_head import SSDHead
from models.detection.losses.hard_negative_loss import HardNegativeLoss
from models.detection.losses.normalisers import PerBatch
from models.detection.losses.smooth_l1_loss import SmoothL1Loss
from models.detection.matcher import AnchorMatcher, Matcher
from models.detection.one_stage import OneStageDetector
from models.detection.postprocessing.postprocess import DensePostprocessor
from models.detection.postprocessing.softmax_postprocess import SoftmaxPostprocessor


class Layout(NamedTuple):
    """The feature layers of a size."""

    image_size: int
    extras: tuple[Extra, ...]
    strides: tuple[int, ...]
    ratios: tuple[tuple[int, ...], ...]


SSD300 = Layout(300, EXTRAS_300, (8, 16, 32, 64, 100, 300), ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)))
SSD512 = Layout(
    512, EXTRAS_512, (8, 16, 32, 64, 128, 256, 512), ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
)  # fmt: skip


class Form(NamedTuple):
    """A published network: its layers, the scales of its default boxes and what was reported of it.

    Scales are those of the authors' `ssd_pascal.py`, `ssd_pascal_512.py` and `ssd_coco.py`; results are with the
    augmentation of the paper's section 3.6, but for COCO with SSD512.
    """

    layout: Layout
    scales: tuple[float, ...]
    clip: bool
    results: dict[str, float]


COCO_300 = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
FORMS = {
    "300_voc": Form(SSD300, (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05), False, {"VOC07 test mAP": 77.2}),
    "300_coco": Form(SSD300, COCO_300, False, {"COCO test-dev AP": 23.2}),
    "300_torchvision": Form(SSD300, COCO_300, True, {"COCO val AP": 25.1}),
    "512_voc": Form(SSD512, (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05), False, {"VOC07 test mAP": 79.8}),
    "512_coco": Form(SSD512, (0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06), False, {"COCO test-dev AP": 26.8}),
}
# What torchvision reports of its SSD300 for 90 classes, and what each class adds.
PARAMETERS = 35_641_826
MACS = 34_858_000_000
PARAMETERS_PER_CLASS = 133_662
MACS_PER_CLASS = 49_780_224


class SSD(OneStageDetector):
    """SSD as published: VGG16, default boxes on six or seven feature layers, softmax with mined negatives.

    Args:
        num_classes: K; torchvision's published network has 90 (COCO's category ids).
        form: a key of `FORMS`. `300_torchvision` cuts default boxes to the size of the image.
        image_size: side in pixels of the input; None is the form's. Default boxes are shares of it.
        levels: how many feature layers, from the finest, are kept; None is all. Small images have room for fewer.
        width: factor on the backbone's channels; 1 is the published network, less is for small machines.
        norm: `batch` normalises after every convolution of the backbone, for training from random weights.
        pretrained_backbone: load ImageNet weights into VGG16, and freeze its first stage as torchvision does.
        matcher: None is positive from an overlap of .5, and the best box of every object.
        class_loss: None is three mined negatives per positive.
        box_loss: on the codes; None is smooth L1.
        postprocessor: None is the best 200 above a score of .01, suppressed at an overlap of .45.

    Raises:
        UserError: no such form, or more levels than it has.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        form: str = "300_coco",
        image_size: int | None = None,
        levels: int | None = None,
        width: float = 1.0,
        norm: Literal["batch"] | None = None,
        pretrained_backbone: bool = False,
        matcher: AnchorMatcher | None = None,
        class_loss: nn.Module | None = None,
        box_loss: nn.Module | None = None,
        postprocessor: DensePostprocessor | None = None,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"SSD has no form {form!r}: choose one of {', '.join(FORMS)}")
        row = FORMS[form]
        layout = row.layout
        levels = levels or len(layout.strides)
        if not 2 <= levels <= len(layout.strides):
            raise UserError(f"SSD's levels {levels} do not do: form {form} has 2 to {len(layout.strides)}")
        size = image_size or layout.image_size
        super().__init__(
            num_classes=num_classes,
            image_size=size,
            backbone=SSDVGG(
                extras=layout.extras[: levels - 2],
                width=width,
                norm=norm,
                pretrained=pretrained_backbone,
                frozen_stages=1 if pretrained_backbone else 0,
            ),
            neck=None,
            head=SSDHead,
            anchors=DefaultBoxes(
                image_size=size,
                strides=layout.strides[:levels],
                scales=row.scales[: levels + 1],
                ratios=layout.ratios[:levels],
                clip=row.clip,
            ),
            matcher=matcher or Matcher(),
            box_coder=BoxCoder(weights=(10, 10, 5, 5), y_first=False, max_log_ratio=MAX_LOG_RATIO),
            class_loss=class_loss or HardNegativeLoss(),
            box_loss=box_loss or SmoothL1Loss(beta=1.0),
            postprocessor=postprocessor or SoftmaxPostprocessor(),
            box_weight=1.0,
            normaliser=PerBatch(),
            size_divisor=size,
            mean=(0.48235, 0.45882, 0.40784),  # 123, 117, 104
            std=(1 / 255,) * 3,
        )
        self.form = form
        self.as_published = (size, width, norm, levels) == (layout.image_size, 1, None, len(layout.strides))

    @property
    def published(self) -> dict[str, int | float]:
        """What was reported, torchvision's counts for this number of classes; nothing for a changed network."""
        if not self.as_published:
            return {}
        row = FORMS[self.form]
        if row.layout is not SSD300:
            return dict(row.results)
        more = self.num_classes - 90
        counts = {"parameters": PARAMETERS + more * PARAMETERS_PER_CLASS, "macs": MACS + more * MACS_PER_CLASS}
        return {**counts, **row.results}

    def check_size(self, height: int, width: int) -> None:
        """See that an input is what the feature layers are made for.

        Raises:
            UserError: height or width is not `image_size`.
        """
        if (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"an input of {height} x {width} pixels does not suit this SSD, whose default boxes are made for "
                f"{self.image_size} x {self.image_size}: set data.image_size and model.network.image_size to the same "
                f"number"
            )

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reads torchvision's `ssd300_vgg16` weights; see `Detector`."""
        return from_torchvision_ssd(state) if "head.regression_head.module_list.0.weight" in state else state
