"""What the recipes of samples share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.transforms import Pixels, Transformed, flip, jitter

if TYPE_CHECKING:
    from datamodules.dataset import DetectionDataset

Sample = tuple[Transformed, np.ndarray, np.ndarray]  # transformed, labels (m,), iscrowd (m,)
Geometry = Callable[[np.ndarray, np.ndarray, np.random.Generator], Transformed]


def one_picture(
    dataset: "DetectionDataset", index: int, rng: np.random.Generator, geometry: Geometry, pixels: Pixels | None
) -> Sample:
    """Load a picture, apply the user's `pixels`, then the recipe's geometry."""
    image, objects = dataset.load(index)
    boxes, labels, crowds = objects["boxes"], objects["labels"], objects["iscrowd"]
    if pixels is not None:
        image, boxes, positions = pixels(image, boxes, rng)
        labels, crowds = labels[positions], crowds[positions]
    done = geometry(image, boxes, rng)
    return done, labels[done.kept], crowds[done.kept]


def together(
    image: np.ndarray, size: tuple[int, int], parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> Sample:
    """A sample from a picture and the (boxes, labels, crowd marks) of several."""
    boxes, labels, crowds = (np.concatenate(column) for column in zip(*parts, strict=True))
    boxes = boxes.astype(np.float32)
    return Transformed(image, boxes, np.arange(len(boxes)), size, (1.0, 1.0)), labels, crowds


def jitter_and_flip(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, **options: Any) -> Transformed:
    """`jitter`, mirrored half of the time."""
    return flip(jitter(image, boxes, rng=rng, **options), rng)
