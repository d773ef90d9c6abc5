"""Assign every anchor to an object, to the background, or to neither."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from models.detection.boxes import pairwise_iou

NEGATIVE = -1
IGNORED = -2

# Anchors are taken in slices, so that a table of overlaps (images x objects x anchors) has no more numbers than this
# (four times as many on a GPU).
SLICE_ELEMENTS = 2**22


class AnchorMatcher(ABC):
    """Assigns the anchors of a batch of images to their objects."""

    @abstractmethod
    def __call__(self, anchors: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
        """Match all images of a batch at once.

        Args:
            anchors: (A, 4) XYXY.
            boxes: (B, M, 4) XYXY.
            valid: (B, M) bool, False for places that hold no object.

        Returns:
            (B, A) int64: index of the object in 0..M-1, or NEGATIVE, or IGNORED.
        """


class Matcher(AnchorMatcher):
    """By intersection over union with thresholds, and a guaranteed anchor per object.

    An anchor belongs to the object it overlaps most if that overlap reaches `positive_iou`, is background below
    `negative_iou`, and is ignored in between. Then, with `force_match`, every object takes the anchor that overlaps it
    most (the first of equals), from background or from another object; of several objects that want the same anchor
    the first one gets it. An object that overlaps no anchor at all takes none.

    Args:
        positive_iou: EfficientDet and RetinaNet 0.5.
        negative_iou: EfficientDet 0.5 (nothing is ignored), RetinaNet 0.4.
        force_match: guarantee every object an anchor.
    """

    def __init__(self, *, positive_iou: float = 0.5, negative_iou: float = 0.5, force_match: bool = True) -> None:
        if not 0 < negative_iou <= positive_iou <= 1:
            raise ValueError(f"need 0 < negative_iou <= positive_iou <= 1, got {negative_iou} and {positive_iou}")
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.force_match = force_match

    @torch.no_grad()
    def __call__(self, anchors: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
        """See `AnchorMatcher`."""
        batch, objects = valid.shape
        if objects == 0:
            return torch.full((batch, len(anchors)), NEGATIVE, device=anchors.device)
        boxes = boxes.where(valid[..., None], 0)  # an empty box overlaps nothing
        overlaps, matches = [], []
        best_overlap = boxes.new_zeros(batch, objects)
        best_anchor = torch.full((batch, objects), len(anchors), device=anchors.device)
        elements = SLICE_ELEMENTS if anchors.device.type == "cpu" else 4 * SLICE_ELEMENTS
        step = max(elements // (batch * objects), 1)
        for start in range(0, len(anchors), step):
            table = pairwise_iou(boxes, anchors[start : start + step])  # (B, M, a)
            overlap, match = table.max(1)  # of each anchor
            overlaps.append(overlap)
            matches.append(match)
            overlap, anchor = table.max(2)  # of each object
            better = overlap > best_overlap
            best_overlap = overlap.where(better, best_overlap)
            best_anchor = (anchor + start).where(better, best_anchor)
        overlap, match = torch.cat(overlaps, 1), torch.cat(matches, 1)  # (B, A)
        match = match.where(overlap >= self.positive_iou, IGNORED)
        match = match.where(overlap >= self.negative_iou, NEGATIVE)
        if self.force_match:
            # One place more than there are anchors collects the objects that overlap none.
            forced = torch.full((batch, len(anchors) + 1), objects, device=anchors.device)
            index = torch.arange(objects, device=anchors.device).expand(batch, -1)
            forced = forced.scatter_reduce(1, best_anchor, index, "amin")[:, :-1]
            match = forced.where(forced < objects, match)
        return match
