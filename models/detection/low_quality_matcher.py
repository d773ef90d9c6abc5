"""The assignment of anchors in a region proposal network."""

import torch
from torch import Tensor

from models.detection.boxes import pairwise_iou
from models.detection.matcher import IGNORED, NEGATIVE, SLICE_ELEMENTS, AnchorMatcher


class LowQualityMatcher(AnchorMatcher):
    """By intersection over union with thresholds; the best anchors of every object are positive whatever they overlap.

    (Ren et al., Faster R-CNN, section 3.1.2.) Called like `Matcher`, and different from it where an object's best
    anchor overlaps another object more: that anchor keeps the object that it overlaps most, as in detectron2 and
    torchvision. All anchors that share an object's best overlap are positive. An object that overlaps no anchor at all
    takes none.

    Args:
        positive_iou: an anchor that overlaps an object as much is positive.
        negative_iou: an anchor that overlaps no object as much is negative; in between it is ignored.
    """

    def __init__(self, *, positive_iou: float = 0.7, negative_iou: float = 0.3) -> None:
        if not 0 < negative_iou <= positive_iou <= 1:
            raise ValueError(f"need 0 < negative_iou <= positive_iou <= 1, got {negative_iou} and {positive_iou}")
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou

    @torch.no_grad()
    def __call__(self, anchors: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
        """See `AnchorMatcher`."""
        batch, objects = valid.shape
        if objects == 0:
            return torch.full((batch, len(anchors)), NEGATIVE, device=anchors.device)
        boxes = boxes.where(valid[..., None], 0)  # an empty box overlaps nothing
        overlaps, matches, ties = [], [], []
        best_overlap = boxes.new_zeros(batch, objects)
        elements = SLICE_ELEMENTS if anchors.device.type == "cpu" else 4 * SLICE_ELEMENTS
        step = max(elements // (batch * objects), 1)
        for start in range(0, len(anchors), step):
            table = pairwise_iou(boxes, anchors[start : start + step])  # (B, M, a)
            overlap, match = table.max(1)  # of each anchor
            overlaps.append(overlap)
            matches.append(match)
            best = table.amax(2)  # of each object
            image, object_, anchor = (table == best.where(best > 0, 2)[..., None]).nonzero(as_tuple=True)
            ties.append((image, object_, anchor + start, best[image, object_]))
            best_overlap = torch.maximum(best_overlap, best)
        overlap, match = torch.cat(overlaps, 1), torch.cat(matches, 1)  # (B, A)
        image, object_, anchor, value = (torch.cat(parts) for parts in zip(*ties, strict=True))
        guaranteed = torch.zeros_like(overlap, dtype=torch.bool)
        chosen = value == best_overlap[image, object_]
        guaranteed[image[chosen], anchor[chosen]] = True
        result = match.where(overlap >= self.positive_iou, IGNORED)
        result = result.where(overlap >= self.negative_iou, NEGATIVE)
        return match.where(guaranteed, result)
