"""Changes of colour that detectors are trained with. Boxes stay where they are.

A function takes an image (H, W, 3) uint8 RGB and a random stream and returns another image.
"""

import cv2
import numpy as np


def ssd_colours(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: float = 32.0,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 18.0,
    probability: float = 0.5,
) -> np.ndarray:
    """SSD's photometric distortion (section 2.2 after Howard 2013; `distort_param` of the authors' `ssd_pascal.py`).

    Each of the four is done with `probability`; contrast is either the second or the last.

    Args:
        image: see the module.
        rng: likewise.
        brightness: most that is added to all pixels, or taken away.
        contrast: pixels are multiplied by 1 - this to 1 + this.
        saturation: likewise for the saturation.
        hue: most degrees on OpenCV's circle of 180 that the hue is turned by.
        probability: of each.
    """
    done = rng.uniform(size=4) < probability
    shift = rng.uniform(-brightness, brightness) if done[0] else 0.0
    factor = rng.uniform(1 - contrast, 1 + contrast) if done[1] else 1.0
    vividness = rng.uniform(1 - saturation, 1 + saturation) if done[2] else 1.0
    turn = rng.uniform(-hue, hue) if done[3] else 0.0
    contrast_first = rng.uniform() < 0.5
    levels = np.arange(256, dtype=np.float32)
    if done[0]:
        image = cv2.LUT(image, _bytes(levels + shift))
    if done[1] and contrast_first:
        image = cv2.LUT(image, _bytes(levels * factor))
    if done[2] or done[3]:
        image = shift_hsv(image, turn, vividness, 1.0)
    if done[1] and not contrast_first:
        image = cv2.LUT(image, _bytes(levels * factor))
    return image


def darknet_colours(
    image: np.ndarray, rng: np.random.Generator, *, hue: float = 0.1, saturation: float = 1.5, exposure: float = 1.5
) -> np.ndarray:
    """YOLO's changes in HSV space (`hue`, `saturation` and `exposure` of the authors' `cfg` files).

    Args:
        image: see the module.
        rng: likewise.
        hue: most of a full turn that the hue is turned by.
        saturation: the saturation is multiplied or divided by 1 to this.
        exposure: likewise for the value.
    """
    factors = rng.uniform(1, (saturation, exposure))
    factors = np.where(rng.uniform(size=2) < 0.5, factors, 1 / factors)
    return shift_hsv(image, 180 * rng.uniform(-hue, hue), *factors.tolist())


def shift_hsv(image: np.ndarray, turn: float, saturation: float, value: float) -> np.ndarray:
    """Turn the hue by degrees on OpenCV's circle of 180, and multiply saturation and value."""
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)))
    levels = np.arange(256, dtype=np.float32)
    tables = [(np.round(levels + turn) % 180).astype(np.uint8)]
    tables += [_bytes(levels * saturation), _bytes(levels * value)]
    planes = [cv2.LUT(plane, table) for plane, table in zip(planes, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB)


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
