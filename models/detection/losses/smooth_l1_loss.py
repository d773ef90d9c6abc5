"""Smooth L1 loss on box codes (Girshick, Fast R-CNN, equation 3)."""

import torch.nn.functional as F
from torch import Tensor, nn


class SmoothL1Loss(nn.Module):
    """Quadratic up to `beta`, linear beyond; summed over the codes of positive anchors.

    Args:
        beta: where the parabola ends: 1 in SSD; 0, plain L1, in RetinaNet as detectron2, torchvision and mmdet have it.

    Attributes:
        of_boxes: it compares codes, not boxes.
    """

    of_boxes = False

    def __init__(self, *, beta: float = 0.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, codes: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
        """Loss of every image.

        Args:
            codes: (B, A, 4), any floating type; the arithmetic is float32.
            targets: (B, A, 4) float32.
            positive: (B, A) bool.

        Returns:
            (B,) float32, not normalised.
        """
        loss = F.smooth_l1_loss(codes.float(), targets, reduction="none", beta=self.beta)
        return loss.where(positive[..., None], 0).sum((1, 2))
