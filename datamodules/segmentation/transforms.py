"""Geometry of pictures with their masks: both move together, and what is padded counts nowhere.

A recipe takes an image (H, W, 3) uint8 RGB, its labels (H, W) uint8 and the random stream of the sample.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from datamodules.segmentation.masks import IGNORED


class TransformedPair(NamedTuple):
    """A transformed image and its mask."""

    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) uint8, 255 where the image is padding
    size: tuple[int, int]  # (height, width) of the picture within the image, at the top left; the rest is padding


Recipe = Callable[[np.ndarray, np.ndarray, np.random.Generator], TransformedPair]


def resize_short(image: np.ndarray, side: int | None) -> np.ndarray:
    """Resize the shorter side of a picture (H, W, 3) to `side`, the longer in proportion, rounded down.

    The transform of validation, test and prediction, as in torchvision's reference. None leaves the picture as it is.
    """
    if side is None:
        return image
    height, width = image.shape[:2]
    if height <= width:
        return resize_image(image, side, int(side * width / height))
    return resize_image(image, int(side * height / width), side)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear; where it shrinks, the mean of what falls into a pixel, so that fine patterns do not alias."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The label nearest to each new pixel's centre: labels are never mixed, and stay where the picture is.

    OpenCV's plain INTER_NEAREST takes the pixel nearest to the corner, which moves masks by up to half a pixel.
    """
    if labels.shape == (height, width):
        return labels
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def whole(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, side: int | None) -> TransformedPair:
    """The whole picture, see `resize_short`."""
    image = resize_short(image, side)
    return TransformedPair(image, resize_labels(labels, *image.shape[:2]), image.shape[:2])


def flipped(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, side: int | None) -> TransformedPair:
    """The whole picture, mirrored half of the time."""
    return flip(whole(image, labels, rng, side=side), rng)


def scale_crop(
    image: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    side: int | None,
    crop: int,
    scale_range: tuple[float, float],
) -> TransformedPair:
    """The multi-scale recipe of torchvision's reference: random size, random square, mirrored half of the time.

    The shorter side becomes `side` (None: its own length) times a factor drawn from `scale_range`; a square of `crop`
    pixels is cut at a random place, or the rest is padded at the bottom and right. In order to resize no more than is
    seen, the square is cut from the original, in whole pixels.
    """
    height, width = labels.shape
    factor = rng.uniform(*scale_range) * (1.0 if side is None else side / min(height, width))
    out_height, out_width = (min(max(round(length * factor), 1), crop) for length in (height, width))
    window_height, window_width = (min(max(round(crop / factor), 1), length) for length in (height, width))
    top = int(rng.integers(height - window_height + 1))
    left = int(rng.integers(width - window_width + 1))
    window = slice(top, top + window_height), slice(left, left + window_width)
    canvas = np.zeros((crop, crop, 3), np.uint8)
    canvas[:out_height, :out_width] = resize_image(image[window], out_height, out_width)
    mask = np.full((crop, crop), IGNORED, np.uint8)
    mask[:out_height, :out_width] = resize_labels(labels[window], out_height, out_width)
    return flip(TransformedPair(canvas, mask, (out_height, out_width)), rng)


def flip(done: TransformedPair, rng: np.random.Generator) -> TransformedPair:
    """Mirror left and right with probability one half; padding stays at the right."""
    if rng.uniform() < 0.5:
        return done
    width = done.size[1]
    image, mask = done.image.copy(), done.mask.copy()
    image[:, :width] = done.image[:, :width][:, ::-1]
    mask[:, :width] = done.mask[:, :width][:, ::-1]
    return done._replace(image=image, mask=mask)
