"""From the bytes of a batch of pictures to what a network is fed."""

import torch
from torch import Tensor


def normalise(images: Tensor, image_size: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise pixels; what lies beyond an image's own size becomes exactly zero.

    Args:
        images: (B, 3, H, W) uint8 RGB, each image at the top left. The memory format is kept.
        image_size: (B, 2) int64, height and width of each image.
        mean: (3, 1, 1), of the pixels.
        std: likewise.

    Returns:
        (B, 3, H, W) float32.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < image_size[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) < image_size[:, 1:]  # (B, W)
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
    return images.to(torch.float32, copy=True).sub_(mean).div_(std).mul_(inside)
