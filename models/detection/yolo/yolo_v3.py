"""YOLOv3 (Redmon, Farhadi: "YOLOv3: An Incremental Improvement", 2018)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.darknet import Darknet53, DarknetConv, scaled
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
)
from models.detection.yolo.yolo_assign import Assignment, assign_priors
from models.detection.yolo.yolo_head import Prediction, PriorGrid, PriorPrediction, prior_grid
from models.detection.yolo.yolo_postprocess import YOLOPostprocessor
from models.loss_term import LossTerm

# Clusters of COCO's boxes, width and height in pixels of a 416-pixel input (section 2.3; `cfg/yolov3.cfg`).
COCO_PRIORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))


class YOLOv3Level(nn.Module):
    """One scale: five convolutions in turns of 1 x 1 and 3 x 3, then one more 3 x 3 and the predictions.

    Args:
        in_channels: of the backbone's feature.
        above: channels of what the next coarser level hands down; 0 at the coarsest.
        channels: C of the 1 x 1 convolutions.
        priors: per cell.
        num_classes: K.
        bn_momentum: see `DarknetConv`.
    """

    def __init__(
        self, in_channels: int, above: int, *, channels: int, priors: int, num_classes: int, bn_momentum: float
    ) -> None:
        super().__init__()
        self.lateral = DarknetConv(above, above // 2, 1, bn_momentum=bn_momentum) if above else None
        widths = [in_channels + above // 2, channels, 2 * channels, channels, 2 * channels, channels, 2 * channels]
        convs = [
            DarknetConv(widths[i], widths[i + 1], 3 if i % 2 else 1, bn_momentum=bn_momentum)
            for i in range(len(widths) - 1)
        ]
        self.body = nn.Sequential(*convs[:-1])
        self.expand = convs[-1]
        self.predict = PriorPrediction(2 * channels, priors, num_classes)

    def forward(self, feature: Tensor, above: Tensor | None) -> tuple[Prediction, Tensor]:
        """Predictions, and what is handed down to the next finer level (B, C, H, W).

        Args:
            feature: (B, `in_channels`, H, W).
            above: (B, `above`, H / 2, W / 2), None at the coarsest level.
        """
        if self.lateral is not None:
            feature = torch.cat([F.interpolate(self.lateral(above), scale_factor=2.0), feature], 1)
        x = self.body(feature)
        return self.predict(self.expand(x)), x


class YOLOv3(YOLO):
    """Darknet-53 and predictions at strides 32, 16, 8, three priors each: 10,647 at 416 pixels.

    Every object is assigned to one prior, the best of all nine by shape, in the cell of its centre. Boxes: binary
    cross-entropy for the place in the cell and squared error for the size, weighted by 2 - (share of the image that the
    object covers). Objectness and classes: binary cross-entropy, so that an object may have several classes. A prior
    without an object that nevertheless predicts a box which overlaps some object by more than .7 is not punished
    (sections 2.1 and 2.2; the weights and the .7 are those of `cfg/yolov3.cfg`, the paper's text has .5).

    The authors train at sizes drawn from 320 to 608 every ten steps, from pictures that are cropped and scaled at
    random; they test on pictures that are fitted into the square. Sizes and crops are the data's affair.

    Args:
        num_classes: K.
        image_size: side of the input in pixels, a multiple of 32.
        priors: width and height in pixels, from fine to coarse; a third of them for every level.
        width: multiplies the number of filters of every layer; the paper's is 1.
        bn_momentum: weight of a batch in the running statistics; darknet's is .01.
        ignore_iou: predicted overlap beyond which a prior without an object is not punished.
        backbone_weights: darknet file of the backbone, pre-trained on ImageNet (`darknet53.conv.74`).
        postprocessor: None is darknet's.

    Raises:
        UserError: a file of weights that does not fit; priors that cannot be shared out among three levels.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int = 416,
        priors: Sequence[Sequence[float]] = COCO_PRIORS,
        width: float = 1.0,
        bn_momentum: float = 0.01,
        ignore_iou: float = 0.7,
        backbone_weights: str | None = None,
        postprocessor: YOLOPostprocessor | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            size_divisor=32,
            postprocessor=postprocessor or YOLOPostprocessor(),
        )
        self.width = width
        self.ignore_iou = ignore_iou
        self.priors = list(check_priors("YOLOv3", priors, 3).chunk(3))  # fine to coarse
        self.backbone = Darknet53(width=width, bn_momentum=bn_momentum)
        load_backbone(self.backbone, backbone_weights)
        self.strides = self.backbone.strides
        self.levels = nn.ModuleList()  # coarse to fine, as they run
        above = 0
        for in_channels, channels in zip(reversed(self.backbone.channels), (512, 256, 128), strict=True):
            self.levels.append(
                YOLOv3Level(
                    in_channels,
                    above,
                    channels=scaled(channels, width),
                    priors=len(self.priors[0]),
                    num_classes=num_classes,
                    bn_momentum=bn_momentum,
                )
            )
            above = scaled(channels, width)

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report for 80 classes at 416 pixels, nothing for another network."""
        if self.width != 1 or self.num_classes != 80 or self.image_size != 416:
            return {}
        return {"parameters": 61_949_149, "macs": 32_930_000_000, "COCO test-dev AP50": 55.3}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw outputs for preprocessed images (B, 3, H, W).

        Returns:
            `codes` (B, A, 4), `objectness` (B, A) and `class_logits` (B, A, K) of all levels, finest first, and
            `sizes`, the (height, width) of every level in cells.

        Raises:
            UserError: H or W is not a multiple of 32.
        """
        self.check_size(images)
        features = self.backbone(images)
        predictions, x = [], None
        for level, feature in zip(self.levels, reversed(features), strict=True):
            prediction, x = level(feature, x)
            predictions.append(prediction)
        codes, objectness, class_logits = (torch.cat(parts, 1) for parts in zip(*reversed(predictions), strict=True))
        return {
            "codes": codes,
            "objectness": objectness,
            "class_logits": class_logits,
            "sizes": [tuple(feature.shape[-2:]) for feature in features],
        }

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """Terms `box_loss`, `objectness_loss` and `class_loss`, each a sum over an image, divided by the images.

        Args:
            outputs: of `forward`.
            targets: crowds and padding are left out.
            image_size: (B, 2); cells beyond it are background like any other.
        """
        assignment = assign_priors(targets, outputs["sizes"], self.strides, self.priors)
        grid = self._grid(outputs)
        return {
            "box_loss": per_image(self._box_loss(outputs, targets, assignment, grid)),
            "objectness_loss": per_image(self._objectness_loss(outputs, targets, assignment, grid)),
            "class_loss": per_image(self._class_loss(outputs, targets, assignment)),
        }

    def boxes_and_scores(self, outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Boxes (B, A, 4) XYXY pixels, and objectness times class probabilities (B, A, K)."""
        scores = outputs["class_logits"].float().sigmoid() * outputs["objectness"].float().sigmoid()[..., None]
        return self._grid(outputs).decode(outputs["codes"].float()), scores

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return output_parameters(self)

    def _grid(self, outputs: dict[str, Any]) -> PriorGrid:
        return prior_grid(outputs["sizes"], self.strides, self.priors, outputs["codes"].device)

    def _box_loss(self, outputs: dict[str, Any], targets: Targets, assignment: Assignment, grid: PriorGrid) -> Tensor:
        """(B,) of the priors that have an object."""
        wanted = grid.rows(assignment.prior).encode(targets["boxes"].float())  # (B, M, 4)
        codes = take_rows(outputs["codes"], assignment.prior).float()
        place = F.binary_cross_entropy_with_logits(codes[..., :2], wanted[..., :2], reduction="none").sum(-1)
        size = (codes[..., 2:] - wanted[..., 2:]).square().sum(-1) / 2
        scale = box_scale(targets["boxes"], outputs["sizes"][0], self.strides[0])
        return ((place + size) * scale).where(assignment.owns, 0).sum(1)

    def _objectness_loss(
        self, outputs: dict[str, Any], targets: Targets, assignment: Assignment, grid: PriorGrid
    ) -> Tensor:
        """(B,) of all priors but the ignored."""
        overlap = best_overlap(grid.decode(outputs["codes"].detach().float()), targets["boxes"], assignment.valid)
        positive = assignment.positive
        counted = positive | (overlap <= self.ignore_iou)
        losses = F.binary_cross_entropy_with_logits(outputs["objectness"].float(), positive.float(), reduction="none")
        return losses.where(counted, 0).sum(1)

    def _class_loss(self, outputs: dict[str, Any], targets: Targets, assignment: Assignment) -> Tensor:
        """(B,) of the priors that have an object; where several share one, it has the classes of all."""
        prior, valid = assignment.prior, assignment.valid
        classes = F.one_hot(targets["labels"].clamp(min=0), self.num_classes).float()  # (B, M, K)
        sharing = (prior[:, :, None] == prior[:, None]) & valid[:, :, None] & valid[:, None]  # (B, M, M)
        wanted = (sharing.float() @ classes).clamp(max=1)
        logits = take_rows(outputs["class_logits"], prior).float()
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)
        return losses.where(assignment.owns, 0).sum(1)
