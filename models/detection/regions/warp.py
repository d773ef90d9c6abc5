"""Regions cut out and stretched to a square, with a border of context (Girshick et al., R-CNN, appendix A)."""

import torch
from torch import Tensor
from torchvision.ops import roi_align


def with_context(boxes: Tensor, size: int, context: int) -> Tensor:
    """The part of the picture that fills the square: boxes grown about their centres, rounded to whole pixels.

    In the square of `size` pixels the box itself leaves a border of `context` pixels on every side.

    Args:
        boxes: (N, 4) XYXY.
        size: side of the square, 227 in the paper.
        context: width of the border, 16 in the paper.

    Returns:
        (N, 4) XYXY, at least a pixel wide and high; may reach over the picture's edge.
    """
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * size / (size - 2 * context)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    first, last = (centre - half).round(), (centre + half).round()
    return torch.cat([first, torch.maximum(last, first + 1)], 1)


def warp(
    images: Tensor, image: Tensor, boxes: Tensor, image_size: Tensor, *, size: int = 227, context: int = 16
) -> Tensor:
    """Cut regions out of pictures and stretch each to a square, whatever its aspect ratio.

    Bilinear, without smoothing, as the authors' `imresize`. What lies beyond the picture's edge is 0, the mean colour
    of a preprocessed picture.

    Args:
        images: (B, 3, H, W) float, preprocessed.
        image: (N,) int64, the picture of each box.
        boxes: (N, 4) XYXY.
        image_size: (B, 2), height and width of each picture in its frame.
        size: side of the square.
        context: width of the border; see `with_context`.

    Returns:
        (N, 3, size, size).
    """
    boxes = with_context(boxes, size, context).to(images.dtype)
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
    # One sample in the middle of every cell: a bilinear resize, of all regions at once.
    crops = roi_align(images, rois, size, 1.0, 1, True)
    middle = (torch.arange(size, device=boxes.device) + 0.5) / size
    x = boxes[:, :1] + middle * (boxes[:, 2:3] - boxes[:, :1])  # (N, size), where the samples were taken
    y = boxes[:, 1:2] + middle * (boxes[:, 3:] - boxes[:, 1:2])
    height, width = image_size[image].unbind(1)
    inside_x, inside_y = (x >= 0) & (x <= width[:, None]), (y >= 0) & (y <= height[:, None])
    return crops.mul_(inside_y[:, None, :, None] & inside_x[:, None, None, :])
