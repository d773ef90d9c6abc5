"""SSD's loss on classes (Liu et al. 2016, section 2.2)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.matcher import NEGATIVE


class HardNegativeLoss(nn.Module):
    """Cross entropy of the positive boxes and, image by image, of those background boxes that it is largest for.

    Args:
        negatives: background boxes per positive one.
    """

    def __init__(self, *, negatives: float = 3.0) -> None:
        super().__init__()
        self.negatives = negatives

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Loss of every image.

        Args:
            logits: per feature layer (B, A_l, K + 1), the background first, any floating type; the arithmetic is
                float32.
            labels: (B, A) int64 with A = sum(A_l): a class in 0..K-1, NEGATIVE, or IGNORED (no loss at all).

        Returns:
            (B,) float32, not normalised.
        """
        scores = torch.cat([level.float() for level in logits], 1)
        classes = (labels + 1).clamp(min=0)
        loss = F.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="none").view_as(labels)
        positive = labels >= 0
        hardest = loss.where(labels == NEGATIVE, -math.inf).sort(dim=1, descending=True).values
        rank = torch.arange(labels.shape[1], device=labels.device)
        mined = (rank < self.negatives * positive.sum(1, keepdim=True)) & hardest.isfinite()
        return loss.where(positive, 0).sum(1) + hardest.where(mined, 0).sum(1)
