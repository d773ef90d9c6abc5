"""A detector that predicts a class and a box for every anchor in one go, composed of parts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError
from models.detection.anchors import Anchors, Pyramid
from models.detection.box_coder import BoxCoder
from models.detection.boxes import take_rows
from models.detection.detector import Detections, Detector, Targets
from models.detection.losses.normalisers import Normaliser, PerBatch
from models.detection.matcher import AnchorMatcher
from models.detection.postprocessing.postprocess import DensePostprocessor
from models.loss_term import LossTerm
from models.necks import Neck


class OneStageDetector(Detector):
    """Backbone, neck, head, and what turns their outputs into losses and detections.

    Neck and head are given as factories (in YAML: a `class_path` with all but their first arguments), because their
    widths follow from the part before them and the number of classes from the data.

    Args:
        num_classes: K.
        image_size: side of the published input, in pixels.
        backbone: has `channels`; images -> features, finest first.
        neck: called with the backbone's channels; has `channels`; features -> pyramid. None takes the backbone's
            features as the pyramid.
        head: called with (the neck's channels, number of levels, anchors per cell, K); pyramid -> `class_logits`
            (B, A_l, K) and `box_codes` (B, A_l, 4) per level; has `class_parameters()`. Without a neck the channels
            are the list of the backbone's.
        anchors: one stride for every level of the pyramid.
        matcher: assigns anchors to objects.
        box_coder: turns boxes to codes and back.
        class_loss: (logits per level, labels (B, A)) -> (B,).
        box_loss: (codes (B, A, 4), targets (B, A, 4), positive (B, A)) -> (B,); of boxes instead of codes if its
            `of_boxes` says so.
        postprocessor: picks the detections.
        box_weight: of the box loss in the total.
        normaliser: what both losses are divided by; None is the number of positive anchors of the batch plus one.
        size_divisor: height and width of an input must be multiples of it; None is what the neck needs, the coarsest
            stride if there is none.
        mean: see `Detector`, like `std`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        backbone: nn.Module,
        neck: Callable[[list[int]], Neck] | None,
        head: Callable[[int, int, int, int], nn.Module],
        anchors: Anchors,
        matcher: AnchorMatcher,
        box_coder: BoxCoder,
        class_loss: nn.Module,
        box_loss: nn.Module,
        postprocessor: DensePostprocessor,
        box_weight: float = 50.0,
        normaliser: Normaliser | None = None,
        size_divisor: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            size_divisor=max(anchors.strides),
            mean=mean,
            std=std,
        )
        self.backbone = backbone
        self.neck = None if neck is None else neck(backbone.channels)
        if size_divisor is not None:
            self.size_divisor = size_divisor
        elif self.neck is not None:
            self.size_divisor = self.neck.size_divisor(backbone.strides)
        channels = backbone.channels if neck is None else self.neck.channels
        self.head = head(channels, len(anchors.strides), anchors.anchors_per_cell, num_classes)
        self.anchors = anchors
        self.matcher = matcher
        self.box_coder = box_coder
        self.class_loss = class_loss
        self.box_loss = box_loss
        self.postprocessor = postprocessor
        self.box_weight = box_weight
        self.normaliser = normaliser or PerBatch(offset=1.0)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw outputs for preprocessed images (B, 3, H, W).

        Returns:
            `class_logits` and `box_codes` as the head gives them, and `sizes`, the pyramid's (height, width) per level.

        Raises:
            UserError: H or W is not a multiple of `size_divisor`.
        """
        self.check_size(*images.shape[-2:])
        pyramid = self.backbone(images)
        if self.neck is not None:
            pyramid = self.neck(pyramid)
        return {**self.head(pyramid), "sizes": [tuple(x.shape[-2:]) for x in pyramid]}

    def check_size(self, height: int, width: int) -> None:
        """See that an input can be divided into cells.

        Raises:
            UserError: height or width is not a multiple of `size_divisor`.
        """
        if height % self.size_divisor or width % self.size_divisor:
            raise UserError(
                f"an input of {height} x {width} pixels does not suit {type(self).__name__}: "
                f"height and width must be multiples of {self.size_divisor}"
            )

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """Terms `class_loss` and `box_loss`, both divided as the `normaliser` says.

        Args:
            outputs: of `forward`.
            targets: crowds and padding are left out.
            image_size: (B, 2); anchors beyond it are background like any other.
        """
        labels, boxes, anchors = self.match(outputs["sizes"], targets)
        positive = labels >= 0
        factor, denominator, offset = self.normaliser(positive.sum(1).float(), self.training)
        codes = torch.cat(outputs["box_codes"], 1)
        if self.box_loss.of_boxes:
            found = self.box_coder.decode(codes.float().where(positive[..., None], 0), anchors)
            box_loss = self.box_loss(found, boxes, positive)
        else:
            box_loss = self.box_loss(codes, self.box_coder.encode(boxes, anchors), positive)
        class_loss = self.class_loss(outputs["class_logits"], labels)
        return {
            "class_loss": LossTerm(class_loss * factor, denominator, 1.0, offset),
            "box_loss": LossTerm(box_loss * factor, denominator, self.box_weight, offset),
        }

    @torch.no_grad()
    def match(self, sizes: Pyramid, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """What every anchor should find.

        Returns:
            Labels (B, A) int64: a class, NEGATIVE or IGNORED; boxes (B, A, 4) float32 XYXY, the anchor itself where
            there is no object; the anchors (A, 4).
        """
        boxes, labels = targets["boxes"], targets["labels"]
        anchors = self.anchors(sizes, boxes.device)
        match = self.matcher(anchors, boxes, (labels >= 0) & ~targets["iscrowd"])  # (B, A)
        if boxes.shape[1] == 0:
            return match, anchors.expand(len(match), -1, -1), anchors
        positive = match >= 0
        index = match.clamp(min=0)
        labels = labels.gather(1, index).where(positive, match)
        boxes = take_rows(boxes, index).where(positive[..., None], anchors)
        return labels, boxes, anchors

    def assign(self, sizes: Pyramid, targets: Targets) -> tuple[Tensor, Tensor]:
        """What every anchor should predict.

        Returns:
            Labels (B, A) int64: a class, NEGATIVE or IGNORED; box codes (B, A, 4) float32, 0 where there is no object.
        """
        labels, boxes, anchors = self.match(sizes, targets)
        return labels, self.box_coder.encode(boxes, anchors)

    def detect(self, outputs: dict[str, Any], image_size: Tensor) -> Detections:
        """Detections in input pixels, clipped to `image_size` (B, 2)."""
        logits, codes = outputs["class_logits"], outputs["box_codes"]
        anchors = self.anchors(outputs["sizes"], logits[0].device)
        return self.postprocessor(logits, codes, anchors, self.box_coder, image_size)

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return [f"head.{name}" for name in self.head.class_parameters()]
