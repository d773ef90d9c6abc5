"""From raw outputs of a dense detector to detections."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.box_coder import BoxCoder
from models.detection.boxes import clip_boxes, take_rows
from models.detection.detector import Detections
from models.detection.postprocessing.nms import HardNMS, SoftNMS


class DensePostprocessor(ABC):
    """Picks the detections among the predictions for all anchors."""

    @abstractmethod
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


class Postprocessor(DensePostprocessor):
    """Best (anchor, class) pairs by sigmoid, decoded, clipped to the image, suppressed within each class.

    Args:
        candidates: pairs that enter suppression (automl's `max_nms_inputs`, effdet's `max_detection_points`): of all
            levels together, or of each.
        per_level: take the `candidates` of each level, as RetinaNet does with 1000 (section 4.1).
        max_detections: D, kept per image.
        score_threshold: pairs at or below it are dropped before suppression.
        nms: the suppression; None is `HardNMS()`.
    """

    def __init__(
        self,
        *,
        candidates: int = 5000,
        per_level: bool = False,
        max_detections: int = 100,
        score_threshold: float = 0.0,
        nms: HardNMS | SoftNMS | None = None,
    ) -> None:
        self.candidates = candidates
        self.per_level = per_level
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
        """See `DensePostprocessor`."""
        boxes = anchors.expand(len(image_size), -1, -1).split([level.shape[1] for level in class_logits], 1)
        # Each level is thinned out before they are put together, which spares a copy of all logits.
        levels = [self._best_anchors(*level) for level in zip(class_logits, box_codes, boxes, strict=True)]
        if not self.per_level:
            levels = [self._best_anchors(*(torch.cat(rows, 1) for rows in zip(*levels, strict=True)))]
        pairs = [self._best_pairs(*level) for level in levels]
        logit, labels, codes, boxes = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
        scores = logit.float().sigmoid()
        scores = scores.where(scores > self.score_threshold, 0)
        if self.per_level:
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            labels, codes, boxes = labels.gather(1, order), take_rows(codes, order), take_rows(boxes, order)
        boxes = clip_boxes(box_coder.decode(codes.float(), boxes), image_size)
        return suppress(boxes, scores, labels, self.nms, self.max_detections)

    def _best_anchors(self, logits: Tensor, codes: Tensor, boxes: Tensor) -> list[Tensor]:
        """Rows (B, R, ...) of the anchors (B, A, ...) with the highest single logit.

        The best n pairs lie within the best n anchors, so no more than these need to be compared pair by pair.
        """
        index = logits.amax(-1).topk(min(self.candidates, logits.shape[1]), sorted=False).indices
        return [take_rows(values, index) for values in (logits, codes, boxes)]

    def _best_pairs(self, logits: Tensor, codes: Tensor, boxes: Tensor) -> list[Tensor]:
        """Logits (B, N), classes (B, N), codes (B, N, 4) and anchors (B, N, 4) of the best pairs, best first."""
        num_classes = logits.shape[-1]
        pairs = logits.flatten(1)  # (B, R * K)
        logit, pair = pairs.topk(min(self.candidates, pairs.shape[1]), sorted=True)
        index = pair // num_classes
        return [logit, pair % num_classes, take_rows(codes, index), take_rows(boxes, index)]


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, nms: HardNMS | SoftNMS, max_detections: int) -> Detections:
    """Candidates by descending score, boxes (B, N, 4), scores and labels (B, N) -> what suppression leaves of them."""
    kept, scores = nms(boxes, scores, labels, max_detections)
    found = kept >= 0
    kept = kept.clamp(min=0)
    return {
        "boxes": take_rows(boxes, kept).where(found[..., None], 0),
        "scores": scores,
        "labels": labels.gather(1, kept).where(found, -1),
    }
