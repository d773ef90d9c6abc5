"""What the boxes of a second stage learn from: sampled proposals, and the losses on them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detection.box_coder import BoxCoder
from models.detection.boxes import pairwise_iou, take_rows
from models.detection.detector import Targets
from models.detection.matcher import IGNORED, NEGATIVE
from models.detection.precision import at_least_float32
from models.detection.sampler import RandomSampler


class RoISamples(NamedTuple):
    """Boxes that a second stage is trained with, positives first, padded to S per image.

    Attributes:
        boxes: (B, S, 4) float32 XYXY.
        taken: (B, S) bool, False where padded.
        labels: (B, S) int64: the class of a positive, NEGATIVE elsewhere.
        goals: (B, S, 4) float32 XYXY: the object that the box overlaps most; the box itself where there is none.
        iou: (B, S) float32: with that object.
        is_object: (B, S) bool: the box is itself an object that was added to the proposals.
    """

    boxes: Tensor
    taken: Tensor
    labels: Tensor
    goals: Tensor
    iou: Tensor
    is_object: Tensor


@torch.no_grad()
def sample_rois(
    boxes: Tensor,
    valid: Tensor,
    targets: Targets,
    sampler: RandomSampler,
    *,
    positive_iou: float = 0.5,
    min_negative_iou: float = 0.0,
    deterministic: bool = False,
    add_objects: bool = True,
) -> RoISamples:
    """Add the objects to the proposals, assign each box to the object that it overlaps most, and sample.

    Args:
        boxes: (B, P, 4) XYXY proposals.
        valid: (B, P) bool, False where padded.
        targets: with at least one place per image; crowds and padding are left out.
        sampler: chooses among positives and negatives.
        positive_iou: a box that overlaps an object as much is positive.
        min_negative_iou: a box that overlaps all objects less is not taken (Fast R-CNN 0.1).
        deterministic: see the sampler.
        add_objects: False leaves the proposals by themselves.
    """
    real = (targets["labels"] >= 0) & ~targets["iscrowd"]  # (B, M)
    proposals = boxes.shape[1]
    if add_objects:
        boxes = torch.cat([boxes, targets["boxes"].to(boxes.dtype)], 1)
        valid = torch.cat([valid, real], 1)
    objects = targets["boxes"].where(real[..., None], 0)  # an empty box overlaps nothing
    iou, match = pairwise_iou(objects, boxes).max(1)  # (B, P + M)
    candidate = valid & (iou >= min_negative_iou)
    labels = match.where(iou >= positive_iou, NEGATIVE).where(candidate, IGNORED)
    index, taken, positive = sampler(labels, deterministic=deterministic)
    width = max(int(taken.sum(1).amax()), 1)  # of the sample that has the most boxes
    index, taken, positive = index[:, :width], taken[:, :width], positive[:, :width]
    match, iou = match.gather(1, index), iou.gather(1, index)
    boxes = take_rows(boxes, index)
    overlaps = taken & (iou > 0)
    return RoISamples(
        boxes=boxes.where(taken[..., None], 0),
        taken=taken,
        labels=targets["labels"].gather(1, match).where(positive, NEGATIVE),
        goals=take_rows(targets["boxes"], match).where(overlaps[..., None], boxes),
        iou=iou.where(taken, 0),
        is_object=taken & (index >= proposals),
    )


def class_losses(logits: Tensor, labels: Tensor, taken: Tensor) -> Tensor:
    """Cross-entropy, summed over the boxes of an image.

    Args:
        logits: (B, S, K + 1), the background last.
        labels: (B, S), NEGATIVE is the background.
        taken: (B, S) bool, the boxes that count.

    Returns:
        (B,) float32.
    """
    classes = logits.shape[-1] - 1
    loss = F.cross_entropy(
        at_least_float32(logits).flatten(0, 1), labels.where(labels >= 0, classes).flatten(), reduction="none"
    )
    return loss.view_as(labels).where(taken, 0).sum(1)


def box_losses(codes: Tensor, samples: RoISamples, box_coder: BoxCoder, *, max_positives: int, beta: float) -> Tensor:
    """Smooth L1 loss on the codes of the positives' own classes, summed over the boxes of an image.

    Args:
        codes: (B, S, 4, R), R the number of classes, or 1 if the codes serve all of them.
        samples: what to learn.
        box_coder: of the codes.
        max_positives: no more than the first of each image are positive.
        beta: where the loss turns from a parabola to a line; 0 is plain L1.

    Returns:
        (B,) float32.
    """
    labels, boxes, goals = (x[:, :max_positives] for x in (samples.labels, samples.boxes, samples.goals))
    codes = at_least_float32(own_codes(codes[:, :max_positives], labels.clamp(min=0)))
    positive = (labels >= 0)[..., None]
    # An empty box has no code, so places without an object get a box of their own.
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    wanted = box_coder.encode(goals.where(positive, unit), boxes.where(positive, unit))
    return F.smooth_l1_loss(codes, wanted, reduction="none", beta=beta).where(positive, 0).sum((1, 2))


def spread(values: Tensor, taken: Tensor) -> Tensor:
    """Rows (N, ...) of the N True places of (B, S) -> (B, S, ...), 0 elsewhere."""
    if len(values) == taken.numel():
        return values.unflatten(0, taken.shape)
    result = values.new_zeros(*taken.shape, *values.shape[1:])
    result[taken] = values
    return result


def own_codes(codes: Tensor, labels: Tensor) -> Tensor:
    """Codes (B, S, 4, R) of the classes (B, S) -> (B, S, 4)."""
    if codes.shape[-1] == 1:
        return codes.squeeze(-1)
    return codes.gather(3, labels[..., None, None].expand(-1, -1, 4, 1)).squeeze(-1)
