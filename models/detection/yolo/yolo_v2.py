"""YOLOv2 (Redmon, Farhadi: "YOLO9000: Better, Faster, Stronger", CVPR 2017)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.darknet import Darknet19, DarknetConv, scaled
from models.detection.boxes import take_rows
from models.detection.detector import Targets
from models.detection.yolo.base import (
    YOLO,
    best_overlap,
    box_scale,
    check_priors,
    load_backbone,
    output_parameters,
    per_image,
    row_iou,
)
from models.detection.yolo.yolo_assign import Assignment, assign_priors
from models.detection.yolo.yolo_head import PriorGrid, PriorPrediction, prior_grid
from models.detection.yolo.yolo_postprocess import YOLOPostprocessor
from models.loss_term import LossTerm

STRIDE = 32

# Clusters of the boxes of COCO and of VOC, width and height in cells (`cfg/yolov2.cfg`, `cfg/yolov2-voc.cfg`).
COCO_PRIORS = ((0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778), (9.77052, 9.16828))
VOC_PRIORS = ((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071))


def reorganise(x: Tensor) -> Tensor:
    """What darknet's `reorg` layer does: (B, C, H, W) -> (B, 4 C, H / 2, W / 2).

    The paper stacks neighbours in different channels, but the layer reads its input as if it had C / 4 channels of
    2 H x 2 W, takes every second row and column of that, and reads the result as 4 C channels of H / 2 x W / 2: the
    order of numbers in memory is never that of places. The authors' weights are trained with it.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, height, 2, width, 2)  # rows and columns of the picture of 2 H x 2 W, halved
    return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


class YOLOv2(YOLO):
    """Darknet-19, three convolutions, a passthrough of finer features and five priors per cell at stride 32.

    Every object is assigned to the prior of the best shape in the cell of its centre. Squared errors, halved: of the
    place in the cell and the logarithm of the size, weighted by 2 - (share of the image that the object covers); of the
    objectness, which should be the overlap of the predicted box with the object (weight 5) or 0 (weight 1, left out
    where the predicted box overlaps some object by more than .6). Classes: softmax and cross-entropy. Over the first
    12,800 images the priors without an object are drawn to their own shape in the middle of their cell, with weight .01
    (`cfg/yolov2.cfg`, `region_layer.c`).

    The authors train at sizes drawn from 320 to 608 every ten steps. They resize pictures to the square without regard
    to the aspect ratio; sizes, crops and aspect ratios are the data's affair.

    Args:
        num_classes: K.
        image_size: side of the input in pixels, a multiple of 32.
        priors: width and height in cells of 32 pixels.
        width: multiplies the number of filters of every layer; the paper's is 1.
        bn_momentum: weight of a batch in the running statistics; darknet's is .01.
        darknet_reorg: hand finer features through as darknet does; False stacks 2 x 2 neighbours as the paper says.
        ignore_iou: predicted overlap beyond which a prior without an object is not punished.
        rescore: the objectness of a prior with an object should be its overlap; False: 1.
        warmup_images: so many images of training draw priors to their shapes.
        backbone_weights: darknet file of the backbone, pre-trained on ImageNet (`darknet19_448.conv.23`).
        postprocessor: None is darknet's.

    Raises:
        UserError: a file of weights that does not fit; priors that are no pairs of positive numbers.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int = 416,
        priors: Sequence[Sequence[float]] = COCO_PRIORS,
        width: float = 1.0,
        bn_momentum: float = 0.01,
        darknet_reorg: bool = True,
        ignore_iou: float = 0.6,
        rescore: bool = True,
        warmup_images: int = 12_800,
        backbone_weights: str | None = None,
        postprocessor: YOLOPostprocessor | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            size_divisor=STRIDE,
            postprocessor=postprocessor or YOLOPostprocessor(),
        )
        self.priors = STRIDE * check_priors("YOLOv2", priors, 1)
        self.width = width
        self.reorganise = reorganise if darknet_reorg else nn.PixelUnshuffle(2)
        self.ignore_iou = ignore_iou
        self.rescore = rescore
        self.warmup_images = warmup_images
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

        self.backbone = Darknet19(num_features=2, width=width, bn_momentum=bn_momentum)
        load_backbone(self.backbone, backbone_weights)
        fine, coarse = self.backbone.channels
        wide, narrow = scaled(1024, width), scaled(64, width)
        self.coarse = nn.Sequential(
            DarknetConv(coarse, wide, 3, bn_momentum=bn_momentum), DarknetConv(wide, wide, 3, bn_momentum=bn_momentum)
        )
        self.passthrough = DarknetConv(fine, narrow, 1, bn_momentum=bn_momentum)
        self.fuse = DarknetConv(4 * narrow + wide, wide, 3, bn_momentum=bn_momentum)
        self.predict = PriorPrediction(wide, len(priors), num_classes)

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report for COCO's 80 or VOC's 20 classes at 416 pixels, nothing for another network."""
        if self.width != 1 or self.image_size != 416 or len(self.priors) != 5:
            return {}
        coco = {"parameters": 50_962_889, "macs": 14_730_000_000}  # the paper's AP is that of 608 pixels
        voc = {"parameters": 50_655_389, "VOC 2007 mAP": 76.8}
        return {80: coco, 20: voc}.get(self.num_classes, {})

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw outputs for preprocessed images (B, 3, H, W).

        Returns:
            `codes` (B, A, 4), `objectness` (B, A) and `class_logits` (B, A, K), and `sizes`, one (height, width) in
            cells.

        Raises:
            UserError: H or W is not a multiple of 32.
        """
        self.check_size(images)
        fine, coarse = self.backbone(images)
        x = torch.cat([self.reorganise(self.passthrough(fine)), self.coarse(coarse)], 1)
        codes, objectness, class_logits = self.predict(self.fuse(x))
        return {
            "codes": codes,
            "objectness": objectness,
            "class_logits": class_logits,
            "sizes": [tuple(coarse.shape[-2:])],
        }

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """Terms `box_loss`, `prior_loss`, `objectness_loss`, `class_loss`: sums over an image, divided by the images.

        In training the images are counted; `prior_loss` is 0 after the first `warmup_images`, and in evaluation.

        Args:
            outputs: of `forward`.
            targets: crowds and padding are left out.
            image_size: (B, 2); cells beyond it are background like any other.
        """
        assignment = assign_priors(targets, outputs["sizes"], [STRIDE], [self.priors])
        grid = self._grid(outputs)
        predicted = grid.decode(outputs["codes"].detach().float())
        if self.training:
            self._count(len(predicted))
        return {
            "box_loss": per_image(self._box_loss(outputs, targets, assignment, grid)),
            "prior_loss": per_image(self._prior_loss(outputs, assignment)),
            "objectness_loss": per_image(self._objectness_loss(outputs, targets, assignment, predicted)),
            "class_loss": per_image(self._class_loss(outputs, targets, assignment)),
        }

    def boxes_and_scores(self, outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Boxes (B, A, 4) XYXY pixels, and objectness times class probabilities (B, A, K)."""
        scores = outputs["class_logits"].float().softmax(-1) * outputs["objectness"].float().sigmoid()[..., None]
        return self._grid(outputs).decode(outputs["codes"].float()), scores

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return output_parameters(self)

    def _grid(self, outputs: dict[str, Any]) -> PriorGrid:
        return prior_grid(outputs["sizes"], [STRIDE], [self.priors], outputs["codes"].device)

    def _count(self, images: int) -> None:
        """Count the images of all processes; darknet, too, counts a batch before it asks how many there were."""
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self.images_seen += images * processes

    def _box_loss(self, outputs: dict[str, Any], targets: Targets, assignment: Assignment, grid: PriorGrid) -> Tensor:
        """(B,) of the priors that have an object."""
        wanted = grid.rows(assignment.prior).encode(targets["boxes"].float())  # (B, M, 4)
        codes = take_rows(outputs["codes"], assignment.prior).float()
        codes = torch.cat([codes[..., :2].sigmoid(), codes[..., 2:]], -1)
        losses = (codes - wanted).square().sum(-1) / 2 * box_scale(targets["boxes"], outputs["sizes"][0], STRIDE)
        return losses.where(assignment.owns, 0).sum(1)

    def _prior_loss(self, outputs: dict[str, Any], assignment: Assignment) -> Tensor:
        """(B,) of the priors that have no object: half a cell from the corner, at the prior's own size."""
        codes = outputs["codes"].float()
        losses = (codes[..., :2].sigmoid() - 0.5).square().sum(-1) + codes[..., 2:].square().sum(-1)
        warm = self.training * (self.images_seen < self.warmup_images)  # stays on the device
        return 0.01 / 2 * warm * losses.where(~assignment.positive, 0).sum(1)

    def _objectness_loss(
        self, outputs: dict[str, Any], targets: Targets, assignment: Assignment, predicted: Tensor
    ) -> Tensor:
        """(B,): with weight 5 of the priors that have an object, 1 of the others but the ignored."""
        objectness = outputs["objectness"].float().sigmoid()
        overlap = best_overlap(predicted, targets["boxes"], assignment.valid)
        background = ~assignment.positive & (overlap <= self.ignore_iou)
        losses = objectness.square().where(background, 0).sum(1)
        own = objectness.gather(1, assignment.prior)  # (B, M)
        wanted = torch.ones_like(own)
        if self.rescore:
            wanted = row_iou(take_rows(predicted, assignment.prior).float(), targets["boxes"].float())
        return (losses + 5 * (own - wanted).square().where(assignment.owns, 0).sum(1)) / 2

    def _class_loss(self, outputs: dict[str, Any], targets: Targets, assignment: Assignment) -> Tensor:
        """(B,) of the priors that have an object; where several share one, it has the class of the last."""
        logits = take_rows(outputs["class_logits"], assignment.prior).float()  # (B, M, K)
        losses = F.cross_entropy(logits.transpose(1, 2), targets["labels"].clamp(min=0), reduction="none")
        return losses.where(assignment.owns, 0).sum(1)
