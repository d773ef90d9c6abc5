"""One set of detections from several: of views of a picture, or of several detectors."""

import torch
from torch import Tensor

from models.detection.boxes import pairwise_iou
from models.detection.detector import Detections
from models.detection.postprocessing.nms import HardNMS, SoftNMS


class Suppression:
    """Throw the detections of all sources together, and suppress within each class.

    Args:
        nms: the suppression; None is `HardNMS()`. `SoftNMS` lowers scores instead of dropping boxes.
    """

    def __init__(self, *, nms: HardNMS | SoftNMS | None = None) -> None:
        self.nms = nms or HardNMS()

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> Detections:
        """Fuse; arguments and result as `WeightedBoxFusion`."""
        boxes, scores, labels = _by_score(boxes, scores, labels)
        kept, scores = self.nms(boxes, scores, labels, limit)
        found = kept >= 0
        kept = kept.clamp(min=0)
        return {
            "boxes": _rows(boxes, kept).where(found[..., None], 0),
            "scores": scores,
            "labels": labels.gather(1, kept).where(found, -1),
        }


class WeightedBoxFusion:
    """Average the boxes that mean the same object, weighted by their scores (Solovyev et al. 2021, section 3).

    Boxes are taken by descending score. One joins the cluster whose fused box it overlaps most, if it does by more than
    `iou_threshold` and has its class, else it begins a cluster of its own. A fused box is the mean of its cluster's
    boxes weighted by their scores. Its score is the mean of theirs, times the share of the sources that found it
    (equation 5, at most 1).

    Args:
        iou_threshold: overlap above which boxes are of one object; the paper's best is .55.
        score_threshold: boxes whose score is this or below are left out.
    """

    def __init__(self, *, iou_threshold: float = 0.55, score_threshold: float = 0.0) -> None:
        self.iou_threshold = iou_threshold
        self.score_threshold = score_threshold

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> Detections:
        """Fuse the detections of V sources.

        Args:
            boxes: (B, V, N, 4) XYXY.
            scores: (B, V, N) float32; 0 marks a place without a detection.
            labels: (B, V, N) int64.
            limit: D.

        Returns:
            The D best per image, padded with score 0 and label -1.
        """
        sources = scores.shape[1]
        boxes, scores, labels = _by_score(boxes, scores, labels)
        batch, count = scores.shape
        # Per cluster: sums of the scores and of the boxes times their scores, number of boxes, class, fused box.
        total, members = scores.new_zeros(batch, count), scores.new_zeros(batch, count)
        weighted, fused = boxes.new_zeros(batch, count, 4), boxes.new_zeros(batch, count, 4)
        of_class = torch.full_like(labels, -1)
        clusters = labels.new_zeros(batch, 1)  # so far
        for i in range(count):
            box, score, label = boxes[:, i : i + 1], scores[:, i : i + 1], labels[:, i : i + 1]
            valid = score > self.score_threshold
            overlap = pairwise_iou(box, fused).squeeze(1).where(of_class == label, -1.0)  # (B, N)
            best, cluster = overlap.max(1, keepdim=True)
            joins = best > self.iou_threshold
            cluster = cluster.where(joins, clusters)
            score = score.where(valid, 0)
            total.scatter_add_(1, cluster, score)
            members.scatter_add_(1, cluster, valid.to(members.dtype))
            place = cluster[..., None].expand(-1, -1, 4)
            weighted.scatter_add_(1, place, box * score[..., None])
            mean = weighted.gather(1, place) / total.gather(1, cluster)[..., None]
            fused.scatter_(1, place, mean.where(valid[..., None], fused.gather(1, place)))
            of_class.scatter_(1, cluster, label.where(valid, of_class.gather(1, cluster)))
            clusters = clusters + (valid & ~joins)
        scores = total / members.clamp(min=1) * members.clamp(max=sources) / sources
        scores, index = scores.sort(dim=1, descending=True, stable=True)
        found, index = (scores > 0)[:, :limit], index[:, :limit]
        padding = (0, max(limit - count, 0))
        return {
            "boxes": torch.nn.functional.pad(_rows(fused, index).where(found[..., None], 0), (0, 0, *padding)),
            "scores": torch.nn.functional.pad(scores[:, :limit].where(found, 0), padding),
            "labels": torch.nn.functional.pad(of_class.gather(1, index).where(found, -1), padding, value=-1),
        }


def _by_score(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All sources of an image in one row, by descending score: (B, V N, 4), (B, V N), (B, V N)."""
    scores, order = scores.float().flatten(1).sort(dim=1, descending=True, stable=True)
    return _rows(boxes.float().flatten(1, 2), order), scores, labels.flatten(1).gather(1, order)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, 4) at (B, D) -> (B, D, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
