"""From the raw outputs of a region proposal network to proposals."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from models.detection.box_coder import BoxCoder
from models.detection.boxes import clip_boxes, take_rows
from models.detection.precision import at_least_float32


class ProposalSelector:
    """The best anchors of every level, decoded, clipped, suppressed within their level; then the best of all levels.

    (Lin et al., FPN, section 5.1; values of Detectron.) Few proposals suffice at test time; pairs of values are for
    training and for evaluation.

    Args:
        candidates: anchors per level that enter suppression: (2000, 1000) with an FPN, (12000, 6000) without.
        max_proposals: kept per image: (1000, 1000) with an FPN (torchvision 2000 in training), (2000, 1000) without.
        iou_threshold: an overlap above it suppresses.
        min_size: boxes with a side below it, in pixels, after clipping are dropped.
    """

    def __init__(
        self,
        *,
        candidates: tuple[int, int] = (2000, 1000),
        max_proposals: tuple[int, int] = (1000, 1000),
        iou_threshold: float = 0.7,
        min_size: float = 1e-3,
    ) -> None:
        self.candidates = tuple(candidates)
        self.max_proposals = tuple(max_proposals)
        self.iou_threshold = iou_threshold
        self.min_size = min_size

    @torch.no_grad()
    def __call__(
        self,
        objectness: Sequence[Tensor],
        box_codes: Sequence[Tensor],
        anchors: Tensor,
        box_coder: BoxCoder,
        image_size: Tensor,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        """Select in all images of a batch at once.

        Args:
            objectness: logits per level (B, A_l).
            box_codes: per level (B, A_l, 4).
            anchors: (A, 4) XYXY with A = sum(A_l).
            box_coder: decodes the codes.
            image_size: (B, 2), height and width of the images within the padded input.
            training: the first of the pairs of values, else the second.

        Returns:
            Boxes (B, P, 4) float32 by descending score, 0 where padded, and their probabilities (B, P), 0 where padded.
            P is the largest number of proposals of an image.
        """
        candidates, limit = (values[0 if training else 1] for values in (self.candidates, self.max_proposals))
        parts = anchors.split([level.shape[1] for level in objectness])
        boxes, scores = [], []
        for level_logits, level_codes, level_anchors in zip(objectness, box_codes, parts, strict=True):
            logit, index = level_logits.topk(min(candidates, level_logits.shape[1]), sorted=True)
            codes = at_least_float32(take_rows(level_codes, index))
            boxes.append(box_coder.decode(codes, level_anchors[index]))
            scores.append(at_least_float32(logit).sigmoid())
        boxes = torch.cat([clip_boxes(level, image_size) for level in boxes], 1)
        scores = torch.cat(self._suppress(boxes.split([level.shape[1] for level in scores], 1), scores), 1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores = scores[:, : max(int((scores[:, :limit] > 0).sum(1).amax()), 1)]
        boxes = take_rows(boxes, order[:, : scores.shape[1]])
        return boxes.where(scores[..., None] > 0, 0), scores

    def _suppress(self, boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Tensor]:
        """Boxes (B, n_l, 4) and scores (B, n_l) per level -> the scores, 0 where suppressed or too small.

        One image and level at a time: on a CPU torchvision's loop in C++ is four times as fast as `HardNMS` on all of
        them together, most of a thousand boxes being kept.
        """
        results = []
        for level_boxes, level_scores in zip(boxes, scores, strict=True):
            large = ((level_boxes[..., 2:] - level_boxes[..., :2]) >= self.min_size).all(-1)
            level_scores = level_scores.where(large, 0)
            kept = torch.zeros_like(large)
            for row, image_boxes, image_scores in zip(kept, level_boxes, level_scores, strict=True):
                row[nms(image_boxes, image_scores, self.iou_threshold)] = True
            results.append(level_scores.where(kept, 0))
        return results
