"""How a sample is made from the dataset: the named augmentations.

A recipe draws everything from the random stream of its sample, other pictures to mix in included, so that a sample is
the same on every process and after a resumption.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.transforms import Pixels, Transformed, flip, jitter, resize_to_fit

if TYPE_CHECKING:
    from datamodules.dataset import DetectionDataset

Sample = tuple[Transformed, np.ndarray, np.ndarray]  # transformed, labels (m,), iscrowd (m,)
Geometry = Callable[[np.ndarray, np.ndarray, np.random.Generator], Transformed]


def plain(dataset: "DetectionDataset", index: int, rng: np.random.Generator, *, side: int | None) -> Sample:
    """No augmentation: the recipe of evaluation."""
    return fitted(dataset, index, rng, side=side, pixels=None)


def fitted(
    dataset: "DetectionDataset", index: int, rng: np.random.Generator, *, side: int | None, pixels: Pixels | None
) -> Sample:
    """Resized to fit."""
    return _one(dataset, index, rng, lambda image, boxes, _: resize_to_fit(image, boxes, side), pixels)


def flipped(
    dataset: "DetectionDataset", index: int, rng: np.random.Generator, *, side: int | None, pixels: Pixels | None
) -> Sample:
    """Resized to fit, mirrored half of the time."""
    return _one(dataset, index, rng, lambda image, boxes, r: flip(resize_to_fit(image, boxes, side), r), pixels)


def jittered(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    scale_range: tuple[float, float] = (0.1, 2.0),
) -> Sample:
    """EfficientDet's: scale jitter, crop or pad, mirrored half of the time."""
    geometry = partial(_jitter_and_flip, side=side, scale_range=scale_range)
    return _one(dataset, index, rng, geometry, pixels)


def mosaic(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    probability: float = 0.5,
    scale_range: tuple[float, float] = (0.4, 1.5),
) -> Sample:
    """Four pictures around a random centre (YOLOv4, section 3.4), with `probability`; otherwise `jittered`.

    The picture and three more, drawn at random, each fill a quarter of the canvas as `jittered` fills the whole.
    """
    if rng.uniform() >= probability:
        return jittered(dataset, index, rng, side=side, pixels=pixels)
    centre_x, centre_y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * side)
    partners = [index, *(int(i) for i in rng.integers(len(dataset), size=3))]
    corners = [(0, 0), (centre_x, 0), (0, centre_y), (centre_x, centre_y)]
    ends = [(centre_x, centre_y), (side, centre_y), (centre_x, side), (side, side)]
    canvas = np.zeros((side, side, 3), np.uint8)
    boxes, labels, crowds = [], [], []
    for partner, (left, top), (right, bottom) in zip(partners, corners, ends, strict=True):
        # What is cut to a sliver cannot be recognised: a quarter of the object must be left.
        geometry = partial(
            _jitter_and_flip,
            side=side,
            scale_range=scale_range,
            frame=(bottom - top, right - left),
            min_visible=0.25,
        )
        done, partner_labels, partner_crowds = _one(dataset, partner, rng, geometry, pixels)
        canvas[top:bottom, left:right] = done.image
        boxes.append(done.boxes + np.array([left, top, left, top], np.float32))
        labels.append(partner_labels)
        crowds.append(partner_crowds)
    all_boxes = np.concatenate(boxes).astype(np.float32)
    done = Transformed(canvas, all_boxes, np.arange(len(all_boxes)), (side, side), (1.0, 1.0))
    return done, np.concatenate(labels), np.concatenate(crowds)


AUGMENTATIONS: dict[str, Callable[..., Sample]] = {
    "none": fitted,
    "flip": flipped,
    "efficientdet": jittered,
    "efficientdet_mild": partial(jittered, scale_range=(0.8, 1.2)),
    "mosaic": mosaic,
}


def _jitter_and_flip(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, **options: Any) -> Transformed:
    return flip(jitter(image, boxes, rng=rng, **options), rng)


def _one(
    dataset: "DetectionDataset", index: int, rng: np.random.Generator, geometry: Geometry, pixels: Pixels | None
) -> Sample:
    image, objects = dataset.load(index)
    boxes, labels, crowds = objects["boxes"], objects["labels"], objects["iscrowd"]
    if pixels is not None:
        image, boxes, positions = pixels(image, boxes, rng)
        labels, crowds = labels[positions], crowds[positions]
    done = geometry(image, boxes, rng)
    return done, labels[done.kept], crowds[done.kept]
