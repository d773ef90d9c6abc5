"""Spatial pyramid pooling (He et al.: "Spatial Pyramid Pooling in Deep Convolutional Networks", ECCV 2014)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_pool

LEVELS = (1, 2, 3, 6)  # 50 bins


def response_cells(boxes: Tensor, stride: int, offset: float, height: int, width: int) -> Tensor:
    """The cells of a feature whose centres lie within boxes (appendix A of the paper).

    The left and the upper border are floor(x / S) + 1, the right and the lower ceil(x / S) - 1. A box without a cell of
    its own gets the one nearest to its centre.

    Args:
        boxes: (N, 4) XYXY pixels of the network's input, the ends exclusive.
        stride: S, pixels per cell.
        offset: where the centre of the first cell lies, in pixels from the centre of the first pixel.
        height: of the feature, in cells.
        width: likewise.

    Returns:
        (N, 4) int64: first column, first row, last column, last row, inclusive.
    """
    first = boxes[:, :2] - offset  # coordinates of pixels: the first of the box, and its last
    last = boxes[:, 2:] - 1 - offset
    start, end = (first / stride).floor() + 1, (last / stride).ceil() - 1
    nearest = ((first + last) / 2 / stride).round()
    empty = end < start
    start, end = nearest.where(empty, start), nearest.where(empty, end)
    limit = boxes.new_tensor([width - 1, height - 1])
    cells = [torch.minimum(place.clamp(min=0), limit) for place in (start, end)]
    return torch.cat(cells, 1).long()


def pyramid_pool(feature: Tensor, cells: Tensor, levels: Sequence[int] = LEVELS) -> Tensor:
    """The largest response in each bin of grids over a part of a feature, of any size.

    Bin i of n along w cells covers the cells floor((i - 1) w / n) to ceil(i w / n).

    Args:
        feature: (1, C, H, W).
        cells: (N, 4) int64, as `response_cells` gives them.
        levels: bins per side.

    Returns:
        (N, C * bins), ordered by level, then by channel.
    """
    rois = torch.cat([cells.new_zeros(len(cells), 1), cells], 1).to(feature.dtype)
    return torch.cat([roi_pool(feature, rois, level, 1.0).flatten(1) for level in levels], 1)


def best_scale(boxes: Tensor, factors: Tensor, side: float = 224.0) -> Tensor:
    """The scale at which each box has most nearly the area `side` squared (section 4.1 of the paper).

    Args:
        boxes: (N, 4) XYXY.
        factors: (N, S), what each scale multiplies the pixels of the box's picture by.
        side: of the area.

    Returns:
        (N,) int64.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1, keepdim=True)
    return (area * factors**2 - side**2).abs().argmin(1)
