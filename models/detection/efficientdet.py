"""EfficientDet D0 to D7x (Tan, Pang, Le: "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020)."""

from functools import partial
from typing import NamedTuple

from torch import Tensor

from errors import UserError
from models.backbones.timm_backbone import TimmBackbone
from models.detection.anchors import AnchorGenerator
from models.detection.box_coder import BoxCoder
from models.detection.converters.effdet import from_effdet
from models.detection.dense_heads.efficientdet_head import EfficientDetHead
from models.detection.losses.focal_loss import FocalLoss
from models.detection.losses.huber_loss import HuberLoss
from models.detection.matcher import Matcher
from models.detection.one_stage import OneStageDetector
from models.detection.postprocessing.postprocess import Postprocessor
from models.necks.bifpn import BiFPN


class Variant(NamedTuple):
    """A row of table 1, and what was published of it (90 classes, table 2 and automl's README).

    `parameters` and `macs` are automl's exact counts (`efficientdet_arch_test.py`); nobody published them for D7x
    beyond the paper's 77M and 410B, its exact `parameters` are those of effdet's network.
    """

    image_size: int
    backbone: str
    channels: int  # of the BiFPN
    cells: int  # of the BiFPN
    head_repeats: int
    weighted: bool  # fast normalised fusion, else a plain sum
    max_level: int
    anchor_scale: float
    drop_path: float  # the paper's networks survive with 0.8, D0 always
    parameters: int
    macs: int
    test_dev_ap: float
    val_ap: float


#          size  backbone              W    D  head  fusion top anch drop  parameters    MACs         test-dev  val
VARIANTS = {
    "d0": Variant(512, "tf_efficientnet_b0", 64, 3, 3, True, 7, 4, 0.0, 3_880_067, 2_550_618_821, 34.6, 34.3),
    "d1": Variant(640, "tf_efficientnet_b1", 88, 4, 3, True, 7, 4, 0.2, 6_625_898, 6_133_752_112, 40.5, 40.2),
    "d2": Variant(768, "tf_efficientnet_b2", 112, 5, 3, True, 7, 4, 0.2, 8_097_039, 11_045_799_933, 43.9, 43.5),
    "d3": Variant(896, "tf_efficientnet_b3", 160, 6, 4, True, 7, 4, 0.2, 12_032_296, 24_982_737_931, 47.2, 46.8),
    "d4": Variant(1024, "tf_efficientnet_b4", 224, 7, 4, True, 7, 4, 0.2, 20_723_675, 55_346_593_717, 49.7, 49.3),
    "d5": Variant(1280, "tf_efficientnet_b5", 288, 7, 4, True, 7, 4, 0.2, 33_653_315, 135_729_505_573, 51.5, 51.3),
    "d6": Variant(1280, "tf_efficientnet_b6", 384, 8, 5, False, 7, 4, 0.2, 51_871_782, 226_033_623_795, 52.6, 52.2),
    "d7": Variant(1536, "tf_efficientnet_b6", 384, 8, 5, False, 7, 5, 0.2, 51_871_782, 325_473_789_367, 53.7, 53.4),
    "d7x": Variant(1536, "tf_efficientnet_b7", 384, 8, 5, False, 8, 4, 0.2, 77_147_166, 410_000_000_000, 55.1, 54.4),
}

MIN_LEVEL = 3


class EfficientDet(OneStageDetector):
    """EfficientDet as published: timm's TensorFlow-padded EfficientNet, BiFPN, shared heads, 9 anchors per cell.

    Args:
        num_classes: K; the published networks have 90 (COCO's category ids 1 to 90, ten of them unused).
        variant: a key of `VARIANTS`.
        pretrained_backbone: load timm's ImageNet weights into the backbone.
        drop_path_rate: stochastic depth of the backbone; None is the variant's.
        matcher: None is the paper's, like the parts below.
        class_loss: on the logits.
        box_loss: on the box codes.
        postprocessor: the paper's evaluation uses `Postprocessor(nms=SoftNMS())`; hard NMS, the default, is faster.

    Raises:
        UserError: no such variant.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        variant: str = "d0",
        pretrained_backbone: bool = False,
        drop_path_rate: float | None = None,
        matcher: Matcher | None = None,
        class_loss: FocalLoss | None = None,
        box_loss: HuberLoss | None = None,
        postprocessor: Postprocessor | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"EfficientDet has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
        row = VARIANTS[variant]
        levels = range(MIN_LEVEL, row.max_level + 1)
        super().__init__(
            num_classes=num_classes,
            image_size=row.image_size,
            backbone=TimmBackbone(
                row.backbone,
                pretrained=pretrained_backbone,
                drop_path_rate=row.drop_path if drop_path_rate is None else drop_path_rate,
                bn_momentum=0.01,
            ),
            neck=partial(
                BiFPN, channels=row.channels, num_levels=len(levels), repeats=row.cells, weighted=row.weighted
            ),
            head=partial(EfficientDetHead, repeats=row.head_repeats),
            anchors=AnchorGenerator(strides=[2**level for level in levels], scale=row.anchor_scale),
            matcher=matcher or Matcher(),
            box_coder=BoxCoder(),
            class_loss=class_loss or FocalLoss(),
            box_loss=box_loss or HuberLoss(),
            postprocessor=postprocessor or Postprocessor(),
        )
        self.variant = variant

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report for 90 classes at `image_size`: for `tools.model_table`."""
        row = VARIANTS[self.variant]
        return {
            "parameters": row.parameters,
            "macs": row.macs,
            "COCO test-dev AP": row.test_dev_ap,
            "COCO val AP": row.val_ap,
        }

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reads effdet's `tf_efficientdet_*` weights; see `Detector`."""
        return from_effdet(state) if "class_net.predict.conv_pw.weight" in state else state
