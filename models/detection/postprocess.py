"""From raw outputs of a dense detector to detections."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.box_coder import BoxCoder
from models.detection.boxes import clip_boxes
from models.detection.detector import Detections
from models.detection.nms import HardNMS, SoftNMS


class Postprocessor:
    """Best (anchor, class) pairs over all levels, decoded, clipped to the image, suppressed within each class.

    Args:
        candidates: pairs that enter suppression (automl's `max_nms_inputs`, effdet's `max_detection_points`).
        max_detections: D, kept per image.
        score_threshold: pairs at or below it are dropped before suppression.
        nms: the suppression; None is `HardNMS()`.
    """

    def __init__(
        self,
        *,
        candidates: int = 5000,
        max_detections: int = 100,
        score_threshold: float = 0.0,
        nms: HardNMS | SoftNMS | None = None,
    ) -> None:
        self.candidates = candidates
        self.max_detections = max_detections
        self.score_threshold = score_threshold
        self.nms = nms or HardNMS()

    @torch.no_grad()
    def __call__(
        self,
        class_logits: Sequence[Tensor],
        box_codes: Sequence[Tensor],
        anchors: Tensor,
        box_coder: BoxCoder,
        image_size: Tensor,
    ) -> Detections:
        """Detect in all images of a batch at once.

        Args:
            class_logits: per level (B, A_l, K).
            box_codes: per level (B, A_l, 4).
            anchors: (A, 4) XYXY with A = sum(A_l).
            box_coder: decodes the codes.
            image_size: (B, 2), height and width of the images within the padded input.

        Returns:
            D detections per image.
        """
        logits, codes, boxes = self._best_anchors(class_logits, box_codes, anchors)
        num_classes = logits.shape[-1]
        pairs = logits.flatten(1)  # (B, R * K)
        logit, pair = pairs.topk(min(self.candidates, pairs.shape[1]), sorted=True)
        index, labels = pair // num_classes, pair % num_classes  # (B, N)
        boxes = clip_boxes(box_coder.decode(_rows(codes, index).float(), _rows(boxes, index)), image_size)
        scores = logit.float().sigmoid()
        kept, scores = self.nms(boxes, scores.where(scores > self.score_threshold, 0), labels, self.max_detections)
        found = kept >= 0
        kept = kept.clamp(min=0)
        return {
            "boxes": _rows(boxes, kept).where(found[..., None], 0),
            "scores": scores,
            "labels": labels.gather(1, kept).where(found, -1),
        }

    def _best_anchors(
        self, class_logits: Sequence[Tensor], box_codes: Sequence[Tensor], anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (logits, codes, anchors) of the R anchors with the highest single logit.

        The best n pairs lie within the best n anchors, so no more than these need to be compared pair by pair. Each
        level is thinned out before they are put together, which spares a copy of all logits.
        """
        logits, codes, boxes, best = [], [], [], []
        parts = anchors.split([level.shape[1] for level in class_logits])
        for level_logits, level_codes, level_anchors in zip(class_logits, box_codes, parts, strict=True):
            highest = level_logits.amax(-1)  # (B, A_l)
            value, index = highest.topk(min(self.candidates, highest.shape[1]), sorted=False)
            logits.append(_rows(level_logits, index))
            codes.append(_rows(level_codes, index))
            boxes.append(level_anchors[index])
            best.append(value)
        highest = torch.cat(best, 1)
        index = highest.topk(min(self.candidates, highest.shape[1]), sorted=False).indices
        return tuple(_rows(torch.cat(rows, 1), index) for rows in (logits, codes, boxes))


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) at (B, R) -> (B, R, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
