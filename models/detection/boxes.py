"""Arithmetic on boxes: XYXY, float pixels, last dimension 4."""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...), square pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box with every other; 0 where both boxes are empty.

    Args:
        first: (..., N, 4).
        second: (..., M, 4), its leading dimensions broadcast against those of `first`.

    Returns:
        (..., N, M) in [0, 1].
    """
    ax1, ay1, ax2, ay2 = first.unsqueeze(-2).unbind(-1)  # (..., N, 1)
    bx1, by1, bx2, by2 = second.unsqueeze(-3).unbind(-1)  # (..., 1, M)
    # In place where the tensor is ours: the (..., N, M) intermediates are what this costs.
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (box_area(first).unsqueeze(-1) + box_area(second).unsqueeze(-2)).sub_(intersection)
    return intersection.div_(union).nan_to_num_(nan=0.0)  # 0 / 0: two empty boxes


def clip_boxes(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Clip to the image: boxes (B, N, 4), image_size (B, 2) as (height, width) -> (B, N, 4)."""
    limits = image_size.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4): w, h, w, h
    return torch.minimum(boxes.clamp(min=0), limits)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Boxes, codes or logits (B, N, C) at the places (B, R) of each image -> (B, R, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
