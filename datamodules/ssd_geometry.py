"""SSD's zooming out and in (Liu et al.: "SSD: Single Shot MultiBox Detector", ECCV 2016, sections 2.2 and 3.6).

Both take an image (H, W, 3) uint8 and boxes (n, 4) float32 XYXY, and return the image, the boxes left and their
positions among the given ones.
"""

import cv2
import numpy as np

from datamodules.transforms import clip_boxes

Cropped = tuple[np.ndarray, np.ndarray, np.ndarray]

MEAN = (123, 117, 104)  # RGB, of ImageNet as the authors' VGG16 has it: what surrounds a picture that is zoomed out
OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)  # least overlap with some object that a crop may have to have


def expand(
    image: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float = 0.5,
    max_ratio: float = 4.0,
    fill: tuple[int, int, int] = MEAN,
) -> Cropped:
    """Zoom out with `probability`: put the picture anywhere on a canvas of 1 to `max_ratio` times its sides."""
    positions = np.arange(len(boxes))
    if rng.uniform() >= probability:
        return image, boxes, positions
    height, width = image.shape[:2]
    ratio = rng.uniform(1, max_ratio)
    more_rows, more_columns = int(height * ratio) - height, int(width * ratio) - width
    top, left = int(rng.integers(more_rows + 1)), int(rng.integers(more_columns + 1))
    borders = (top, more_rows - top, left, more_columns - left)
    canvas = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=fill)  # much faster than filling by numpy
    return canvas, boxes + np.array([left, top, left, top], np.float32), positions


def crop(
    image: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    overlaps: tuple[float, ...] = OVERLAPS,
    trials: int = 50,
    scale_range: tuple[float, float] = (0.3, 1.0),
    aspect_range: tuple[float, float] = (0.5, 2.0),
) -> Cropped:
    """Zoom in: one of several crops that show enough of an object, or the whole picture.

    As the authors' program does (`batch_sampler` of `ssd_pascal.py`): for every least overlap, and once without a
    condition, the first of `trials` random windows is taken that overlaps some object by that much; of the windows
    found and the whole picture one is drawn. Objects stay whose centres are inside.

    Args:
        image: see the module.
        boxes: likewise; without any, the picture stays whole.
        rng: random stream.
        overlaps: least overlaps (intersection over union of window and box).
        trials: windows drawn for each.
        scale_range: square roots of the share of the picture that a window covers.
        aspect_range: its width over height, relative to the picture's; never so wide or high that it does not fit.
    """
    height, width = image.shape[:2]
    choices = [np.array([0, 0, width, height])]
    conditions = np.array([*overlaps, 0.0]) if len(boxes) else np.zeros(0)
    windows = draw_windows(rng, (len(conditions), trials), (height, width), scale_range, aspect_range)
    for condition, candidates in zip(conditions, windows, strict=True):
        fitting = np.flatnonzero(_iou(candidates, boxes).max(1) >= condition)
        if len(fitting):
            choices.append(candidates[fitting[0]])
    left, top, right, bottom = (int(side) for side in choices[rng.integers(len(choices))])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = np.flatnonzero((centres >= [left, top]).all(1) & (centres < [right, bottom]).all(1))
    shifted = boxes[inside] - np.array([left, top, left, top], np.float32)
    left_boxes, kept = clip_boxes(shifted, right - left, bottom - top)
    return image[top:bottom, left:right], left_boxes, inside[kept]


def draw_windows(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    size: tuple[int, int],
    scale_range: tuple[float, float],
    aspect_range: tuple[float, float],
) -> np.ndarray:
    """Random windows in a picture of `size` (height, width): (*shape, 4) int64 XYXY in whole pixels."""
    scale = rng.uniform(*scale_range, shape)
    aspect = np.clip(rng.uniform(*aspect_range, shape), scale**2, 1 / scale**2)
    sides = np.stack([scale * aspect**0.5, scale / aspect**0.5], -1)  # shares of width and height, at most 1
    sides = np.clip(np.round(sides * [size[1], size[0]]), 1, [size[1], size[0]]).astype(np.int64)
    corners = np.floor(rng.uniform(size=(*shape, 2)) * ([size[1] + 1, size[0] + 1] - sides)).astype(np.int64)
    return np.concatenate([corners, corners + sides], -1)


def _iou(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(w, 4) and (n, 4) -> (w, n)."""
    sides = np.minimum(windows[:, None, 2:], boxes[:, 2:]) - np.maximum(windows[:, None, :2], boxes[:, :2])
    intersection = sides.clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (windows, boxes)]
    return intersection / (areas[0][:, None] + areas[1] - intersection)
