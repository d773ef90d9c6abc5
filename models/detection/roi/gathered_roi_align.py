"""RoIAlign as weighted sums of rows, on all levels at once: faster than torchvision's kernel on a CPU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gathered_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    *,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """What `torchvision.ops.roi_align` gives for every box on its level, up to the rounding of sums.

    A cell is the mean of `sampling_ratio`^2 points, a point the bilinear mean of four places of a feature, and both are
    the same for all channels: with channels last a cell is a weighted sum of 4 * `sampling_ratio`^2 rows, which
    `embedding_bag` adds with vector instructions.

    Args:
        features: per level (B, C, H_l, W_l).
        rois: (N, 5), the image's index first, then XYXY in pixels of the input.
        levels: (N,) int64, of each box.
        strides: of the levels.
        output_size: S, cells per side of the result.
        sampling_ratio: points per side of a cell, at least 1.
        aligned: as in torchvision.

    Returns:
        (N, C, S, S).
    """
    channels = features[0].shape[1]
    rows = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, channels) for x in features])
    heights = torch.tensor([x.shape[2] for x in features])
    widths = torch.tensor([x.shape[3] for x in features])
    counts = heights * widths * len(features[0])
    first = (counts.cumsum(0) - counts)[levels]  # row of the first place of each box's level
    height, width = heights[levels], widths[levels]
    scale = rois.new_tensor([1 / stride for stride in strides])[levels]
    x1, y1, x2, y2 = (rois[:, 1:] * scale[:, None] - (0.5 if aligned else 0.0)).unbind(1)
    x_places, x_weights = _taps(x1, x2, width, output_size, sampling_ratio, aligned)  # (N, S, T)
    y_places, y_weights = _taps(y1, y2, height, output_size, sampling_ratio, aligned)
    start = first + rois[:, 0].long() * height * width
    places = (start[:, None, None] + y_places * width[:, None, None])[:, :, None, :, None] + x_places[:, None, :, None]
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None]  # (N, S, S, T, T)
    taps = x_places.shape[2] ** 2
    pooled = F.embedding_bag(places.view(-1, taps), rows, per_sample_weights=weights.view(-1, taps), mode="sum")
    return pooled.view(len(rois), output_size, output_size, channels).permute(0, 3, 1, 2)


def _taps(low: Tensor, high: Tensor, size: Tensor, cells: int, points: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Along one axis: places (N, cells, 2 * points) of the feature that every cell reads, and their weights."""
    length = high - low
    if not aligned:
        length = length.clamp(min=1)
    step = torch.arange(cells * points, dtype=low.dtype) + 0.5
    at = low[:, None] + length[:, None] / (cells * points) * step  # (N, cells * points)
    last = (size - 1)[:, None]
    inside = (at >= -1) & (at <= size[:, None])
    at = at.clamp(min=0)
    near = torch.minimum(at.long(), last)
    far = torch.minimum(near + 1, last)
    fraction = (at - near).where(near < last, 0)
    places = torch.stack([near, far], -1)
    weights = torch.stack([1 - fraction, fraction], -1) * inside[..., None] / points
    return places.view(len(low), cells, -1), weights.view(len(low), cells, -1)
