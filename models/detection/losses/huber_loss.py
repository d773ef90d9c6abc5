"""Huber loss on box codes."""

import torch.nn.functional as F
from torch import Tensor, nn


class HuberLoss(nn.Module):
    """Quadratic up to `delta`, linear beyond; averaged over the four codes of a box, summed over positive anchors.

    As in automl's `det_model_fn.py`, a code whose target is exactly 0 counts nothing.

    Args:
        delta: where the parabola ends, about the mean size of a target.

    Attributes:
        of_boxes: it compares codes, not boxes.
    """

    of_boxes = False

    def __init__(self, *, delta: float = 0.1) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, codes: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
        """Loss of every image.

        Args:
            codes: (B, A, 4), any floating type; the arithmetic is float32.
            targets: (B, A, 4) float32.
            positive: (B, A) bool.

        Returns:
            (B,) float32, not normalised.
        """
        loss = F.huber_loss(codes.float(), targets, reduction="none", delta=self.delta)
        return loss.where(positive[..., None] & (targets != 0), 0).sum((1, 2)) / 4
