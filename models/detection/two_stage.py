"""A detector that proposes regions and then looks at each of them again, composed of parts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.detection.detector import Detections, Detector, Targets
from models.loss_term import LossTerm
from models.necks import Neck


class TwoStageDetector(Detector):
    """Backbone, neck, region proposal network, and a head for the proposed regions.

    Neck, RPN and RoI head are given as factories (in YAML: a `class_path` with all but their first arguments), because
    their widths follow from the part before them and the number of classes from the data.

    Args:
        num_classes: K.
        image_size: side of the published input, in pixels.
        backbone: has `channels` and `strides`; images -> features, finest first.
        neck: called with the backbone's channels; has `channels`; features -> pyramid. None leaves the backbone's
            features as they are.
        rpn: called with the channels of the features; see `RPN`.
        roi_head: called with (the channels of the features, K); see `RoIHead` and `CascadeRoIHead`.
        size_divisor: height and width of an input must be multiples of it; None is what the neck needs; without
            a neck any size will do.
        mean: see `Detector`, like `std`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        backbone: nn.Module,
        rpn: Callable[[int], nn.Module],
        roi_head: Callable[[int, int], nn.Module],
        neck: Callable[[list[int]], Neck] | None = None,
        size_divisor: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            size_divisor=size_divisor or 1,
            mean=mean,
            std=std,
        )
        self.backbone = backbone
        self.neck = None if neck is None else neck(backbone.channels)
        if size_divisor is None and self.neck is not None:
            self.size_divisor = self.neck.size_divisor(backbone.strides)
        channels = backbone.channels[-1] if neck is None else self.neck.channels
        self.rpn = rpn(channels)
        self.roi_head = roi_head(channels, num_classes)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw outputs of the first stage for preprocessed images (B, 3, H, W).

        Returns:
            `features` per level (B, C, H_l, W_l), `objectness`, `box_codes` and `sizes` as the RPN gives them.

        Raises:
            UserError: H or W is not a multiple of `size_divisor`.
        """
        height, width = images.shape[-2:]
        if height % self.size_divisor or width % self.size_divisor:
            raise UserError(
                f"an input of {height} x {width} pixels does not suit {type(self).__name__}: "
                f"height and width must be multiples of {self.size_divisor}"
            )
        features = self.backbone(images)
        if self.neck is not None:
            features = self.neck(features)
        return {"features": features, **self.rpn(features)}

    def all_stages(self, images: Tensor) -> None:
        """The work that images (B, 3, H, W) of any content make: for counting operations.

        `forward`, and the second stage on as many boxes as there are proposals at most.
        """
        features = self(images)["features"]
        boxes = len(images) * self.rpn.selector.max_proposals[1]
        self.roi_head.on_pooled(features[0].new_empty(boxes, *self.roi_head.extractor.shape(features[0].shape[1])))

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """The terms of the RPN (`rpn_...`) and of the RoI head.

        Sampling is random in training mode and follows a fixed order otherwise, so that the loss of a validation is
        one number.

        Args:
            outputs: of `forward`; the proposals are added to it.
            targets: crowds and padding are left out.
            image_size: (B, 2); proposals are clipped to it.
        """
        if targets["labels"].shape[1] == 0:
            targets = _with_a_place(targets)
        boxes, valid = self.proposals(outputs, image_size)
        return {
            **self.rpn.loss_terms(outputs, targets, image_size),
            **self.roi_head.loss_terms(outputs["features"], boxes, valid, targets, image_size),
        }

    def detect(self, outputs: dict[str, Any], image_size: Tensor) -> Detections:
        """Detections in input pixels, clipped to `image_size` (B, 2); the proposals are added to `outputs`."""
        boxes, valid = self.proposals(outputs, image_size)
        return self.roi_head.detect(outputs["features"], boxes, valid, image_size)

    def proposals(self, outputs: dict[str, Any], image_size: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4) XYXY by descending objectness, and (B, P) bool, False where padded.

        They are kept in `outputs`: a validation wants the losses and the detections of the same proposals.
        """
        if "proposals" not in outputs:
            boxes, scores = self.rpn.propose(outputs, image_size)
            outputs["proposals"] = boxes, scores > 0
        return outputs["proposals"]

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return [f"roi_head.{name}" for name in self.roi_head.class_parameters()]


def _with_a_place(targets: Targets) -> Targets:
    """Targets without any object, not even padding, with one place of padding per image."""
    return {
        "boxes": F.pad(targets["boxes"], (0, 0, 0, 1)),
        "labels": F.pad(targets["labels"], (0, 1), value=-1),
        "iscrowd": F.pad(targets["iscrowd"], (0, 1)),
        "area": F.pad(targets["area"], (0, 1)),
    }
