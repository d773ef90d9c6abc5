"""Loss on how boxes overlap (Rezatofighi et al.: "Generalized Intersection over Union", CVPR 2019)."""

import torch
from torch import Tensor, nn

from models.detection.boxes import box_area


class GIoULoss(nn.Module):
    """1 - GIoU, summed over positive anchors.

    GIoU is the overlap, less the share of the smallest box around both that neither of them covers.

    Args:
        eps: added to areas that are divided by.

    Attributes:
        of_boxes: it compares boxes, not their codes.
    """

    of_boxes = True

    def __init__(self, *, eps: float = 1e-7) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, boxes: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
        """Loss of every image.

        Args:
            boxes: (B, A, 4) XYXY, float32.
            targets: (B, A, 4) XYXY, float32.
            positive: (B, A) bool.

        Returns:
            (B,) float32, not normalised.
        """
        ax1, ay1, ax2, ay2 = boxes.unbind(-1)
        bx1, by1, bx2, by2 = targets.unbind(-1)
        width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
        height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
        intersection = width * height
        union = box_area(boxes) + box_area(targets) - intersection
        around = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (
            torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
        )
        giou = intersection / (union + self.eps) - (around - union) / (around + self.eps)
        return (1 - giou).where(positive, 0).sum(1)
