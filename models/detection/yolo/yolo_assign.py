"""Which prior answers for which object in YOLOv2 and YOLOv3, for all images of a batch at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.detection.detector import Targets


class Assignment(NamedTuple):
    """One prior per object. Where objects share a prior, the last of them has it, as in darknet."""

    prior: Tensor  # (B, M) int64, position among the A priors; 0 where the object has none (padding, crowd, empty)
    valid: Tensor  # (B, M) bool, the object has a prior
    owns: Tensor  # (B, M) bool, the object has a prior to itself or is the last of those that share it
    positive: Tensor  # (B, A) bool, the prior answers for an object


@torch.no_grad()
def assign_priors(
    targets: Targets,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    priors: Sequence[Tensor],
) -> Assignment:
    """Assign every object to the prior of the best shape, in the cell of its centre.

    The shapes of all priors of all levels compete (overlap of boxes with the same centre, darknet's `yolo_layer.c`);
    where several fit as well, the first wins. The cell is one of the winner's level.

    Args:
        targets: crowds, padding and empty boxes get no prior.
        sizes: height and width of every level, in cells.
        strides: of every level, in pixels.
        priors: (n, 2) of every level, width and height in pixels.
    """
    boxes = targets["boxes"].float()
    device = boxes.device
    extent = boxes[..., 2:] - boxes[..., :2]  # (B, M, 2)
    valid = (targets["labels"] >= 0) & ~targets["iscrowd"] & (extent > 0).all(-1)
    shapes = torch.cat(list(priors)).to(device)  # (P, 2)
    best = shape_iou(extent, shapes).argmax(-1)  # (B, M)

    counts = [len(level) for level in priors]
    starts = [0]
    for (height, width), count in zip(sizes, counts, strict=True):
        starts.append(starts[-1] + height * width * count)
    # Per prior: height, width and stride of its level, priors per cell, first position of the level, place in the cell.
    table = torch.tensor(
        [
            (*size, stride, count, start, slot)
            for size, stride, count, start in zip(sizes, strides, counts, starts[:-1], strict=True)
            for slot in range(count)
        ],
        device=device,
    )
    height, width, stride, count, start, slot = table[best].unbind(-1)  # each (B, M)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    column = (centre[..., 0] / stride).long().clamp(min=0).minimum(width - 1)
    row = (centre[..., 1] / stride).long().clamp(min=0).minimum(height - 1)
    prior = (start + (row * width + column) * count + slot).where(valid, 0)

    order = torch.arange(boxes.shape[1], device=device).expand_as(prior)
    owner = torch.full((len(boxes), starts[-1]), -1, device=device)
    owner = owner.scatter_reduce(1, prior, order.where(valid, -1), "amax")
    return Assignment(prior, valid, valid & (owner.gather(1, prior) == order), owner >= 0)


def shape_iou(sizes: Tensor, others: Tensor) -> Tensor:
    """Overlap of boxes with the same centre: sizes (..., M, 2), others (P, 2) -> (..., M, P)."""
    intersection = torch.minimum(sizes[..., None, :], others).prod(-1)
    return intersection / (sizes.prod(-1)[..., None] + others.prod(-1) - intersection)
