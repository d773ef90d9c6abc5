"""Predictions of a convolution, anchor by anchor."""

import torch
from torch import Tensor


def by_anchor(x: Tensor, width: int) -> Tensor:
    """(B, anchors * width, h, w) -> (B, h * w * anchors, width), a view if `x` is channels-last."""
    return torch.permute(x, (0, 2, 3, 1)).reshape(x.shape[0], -1, width)
