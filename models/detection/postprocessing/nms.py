"""Non-maximum suppression within each class, for all images of a batch at once."""

import torch
from torch import Tensor

from models.detection.boxes import pairwise_iou


class HardNMS:
    """Drop every box that overlaps a better one of its class that was itself kept.

    Exactly `torchvision.ops.batched_nms` cut to the best boxes. Boxes are decided in blocks of descending score, until
    every image has enough: what is kept never depends on worse boxes, so most candidates are never looked at.

    Args:
        iou_threshold: an overlap above it suppresses.
        block: candidates decided together; None is 256 on a CPU, and 1024 elsewhere, where every block is waited for.
    """

    def __init__(self, *, iou_threshold: float = 0.5, block: int | None = None) -> None:
        self.iou_threshold = iou_threshold
        self.block = block

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Select at most `limit` boxes per image.

        Args:
            boxes: (B, N, 4) XYXY, by descending score.
            scores: (B, N) float32; a score of 0 marks a place without a candidate, after all others.
            labels: (B, N) int64.
            limit: D.

        Returns:
            Indices (B, D) into the candidates by descending score, -1 where there are no more, and their scores (B, D).
        """
        batch, count = scores.shape
        kept = torch.full((batch, limit), -1, device=boxes.device)
        alive = scores > 0
        block = self.block or (256 if boxes.device.type == "cpu" else 1024)
        for start in range(0, count, block):
            part = slice(start, start + block)
            if not alive[:, start:].any():
                break
            if start:
                overlaps = self._conflicts(_pick(boxes, kept), _pick(labels, kept), boxes[:, part], labels[:, part])
                alive[:, part] &= ~(overlaps & (kept >= 0)[..., None]).any(1)
            within = self._conflicts(boxes[:, part], labels[:, part], boxes[:, part], labels[:, part]).triu_(1)
            alive[:, part] = _resolve(within, alive[:, part])
            kept = _first(alive[:, : start + block], limit)
            if (kept[:, -1] >= 0).all():
                break
        return kept, _pick(scores, kept).where(kept >= 0, 0)

    def _conflicts(self, boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor) -> Tensor:
        """(B, n, m) bool: same class and too much overlap."""
        same_class = labels[:, :, None] == other_labels[:, None]
        return same_class & (pairwise_iou(boxes, others) > self.iou_threshold)


class SoftNMS:
    """Gaussian soft-NMS (Bodla et al. 2017): overlapped boxes of a class lose score instead of being dropped.

    Repeatedly the best box is taken and the others of its class are multiplied by exp(-IoU^2 / sigma). Defaults are
    automl's (`efficientdet/tf2/postprocess.py`).

    Args:
        sigma: width of the Gaussian.
        score_threshold: boxes whose score is or falls to this or below are dropped.
    """

    def __init__(self, *, sigma: float = 0.5, score_threshold: float = 0.001) -> None:
        self.sigma = sigma
        self.score_threshold = score_threshold

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Select at most `limit` boxes per image; arguments and results as `HardNMS`, the scores lowered."""
        scores = scores.where(scores > self.score_threshold, 0)
        indices, values = [], []
        for _ in range(limit):
            score, index = scores.max(1, keepdim=True)  # (B, 1)
            indices.append(index.where(score > 0, -1))
            values.append(score)
            iou = pairwise_iou(_pick(boxes, index), boxes).squeeze(1)  # (B, N)
            decay = torch.exp(-(iou**2) / self.sigma).where(labels == labels.gather(1, index), 1)
            scores = (scores * decay).scatter(1, index, 0)
            scores = scores.where(scores > self.score_threshold, 0)
        return torch.cat(indices, 1), torch.cat(values, 1)


def _resolve(conflicts: Tensor, alive: Tensor) -> Tensor:
    """Greedy suppression: conflicts (B, n, n) upper triangular, alive (B, n) -> the survivors (B, n).

    Every round settles at least one more box in the order of scores, usually nearly all; a round that changes nothing
    is the answer.
    """
    survivors = alive
    while True:
        suppressed = (conflicts & survivors[..., None]).any(1)
        settled = alive & ~suppressed
        if torch.equal(settled, survivors):
            return settled
        survivors = settled


def _first(mask: Tensor, limit: int) -> Tensor:
    """Positions of the first `limit` True of every row (B, n) -> (B, limit), padded with -1."""
    count = mask.shape[1]
    order = torch.arange(count, device=mask.device).where(mask, count)
    first = order.topk(min(limit, count), largest=False, sorted=True).values
    first = torch.nn.functional.pad(first, (0, limit - first.shape[1]), value=count)
    return first.where(first < count, -1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Gather (B, N, ...) at (B, D) -> (B, D, ...); negative indices give the first."""
    index = index.clamp(min=0)
    if values.ndim == 3:
        index = index[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index)
