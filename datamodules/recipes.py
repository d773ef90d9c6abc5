"""How a sample is made from the dataset: the named augmentations.

A recipe draws everything from the random stream of its sample, other pictures to mix in included, so that a sample is
the same on every process and after a resumption. All its numbers are keyword arguments, which
`data.augmentation_options` sets.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datamodules.copy_paste import copy_paste
from datamodules.photometric import darknet_colours, ssd_colours
from datamodules.samples import Sample, jitter_and_flip, one_picture, together
from datamodules.ssd_geometry import OVERLAPS, crop, expand
from datamodules.transforms import Pixels, Transformed, clip_boxes, flip, place, resize_to_fit, stretch
from errors import UserError

if TYPE_CHECKING:
    from datamodules.dataset import DetectionDataset

Recipe = Callable[..., Sample]

GREY = (127, 127, 127)  # what darknet surrounds pictures with
RESIZES = {"fit": resize_to_fit, "stretch": stretch}


def plain(
    dataset: "DetectionDataset", index: int, rng: np.random.Generator, *, side: int | None, resize: str = "fit"
) -> Sample:
    """No augmentation: the recipe of evaluation."""
    return fitted(dataset, index, rng, side=side, pixels=None, resize=resize)


def fitted(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int | None,
    pixels: Pixels | None,
    resize: str = "fit",
) -> Sample:
    """Resized to fit, or stretched."""
    return one_picture(dataset, index, rng, lambda image, boxes, _: RESIZES[resize](image, boxes, side), pixels)


def flipped(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int | None,
    pixels: Pixels | None,
    resize: str = "fit",
) -> Sample:
    """Resized to fit, or stretched, mirrored half of the time."""
    return one_picture(
        dataset, index, rng, lambda image, boxes, r: flip(RESIZES[resize](image, boxes, side), r), pixels
    )


def jittered(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    scale_range: tuple[float, float] = (0.1, 2.0),
) -> Sample:
    """EfficientDet's, large-scale jitter: resized by a random factor, cropped or padded, mirrored half of the time."""
    return one_picture(dataset, index, rng, partial(jitter_and_flip, side=side, scale_range=scale_range), pixels)


def ssd(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    colours: float = 0.5,
    expand_probability: float = 0.5,
    max_ratio: float = 4.0,
    overlaps: tuple[float, ...] = OVERLAPS,
    resize: str = "stretch",
) -> Sample:
    """SSD's: colours (each with probability `colours`), zoomed out, zoomed in, stretched, mirrored half of the time."""

    def geometry(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> Transformed:
        image = ssd_colours(image, rng, probability=colours)
        image, boxes, _ = expand(image, boxes, rng, probability=expand_probability, max_ratio=max_ratio)
        image, boxes, kept = crop(image, boxes, rng, overlaps=tuple(overlaps))
        done = RESIZES[resize](image, boxes, side)
        boxes, left = clip_boxes(done.boxes, side, side)
        return flip(done._replace(boxes=boxes, kept=kept[left], scale=(1.0, 1.0)), rng)

    return one_picture(dataset, index, rng, geometry, pixels)


def yolo(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    jitter: float = 0.3,
    scale_range: tuple[float, float] = (0.25, 2.0),
    hue: float = 0.1,
    saturation: float = 1.5,
    exposure: float = 1.5,
) -> Sample:
    """YOLOv3's (darknet's `load_data_detection`): placed at random on a grey square, colours, mirrored half the time.

    The picture's sides are changed by a share of up to `jitter` each, which changes the aspect ratio; the longer one
    becomes `side` times a factor from `scale_range`.
    """

    def geometry(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> Transformed:
        height, width = image.shape[:2] * rng.uniform(1 - jitter, 1 + jitter, 2)
        factor = rng.uniform(*scale_range) * side / max(height, width)
        size = np.maximum(np.round(factor * np.array([height, width])), 1).astype(int)
        top, left = (int(v) for v in np.round(rng.uniform(size=2) * (side - size)))
        image = darknet_colours(image, rng, hue=hue, saturation=saturation, exposure=exposure)
        return flip(place(image, boxes, side, (top, left), (int(size[0]), int(size[1])), GREY), rng)

    return one_picture(dataset, index, rng, geometry, pixels)


def yolo_crop(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    jitter: float = 0.2,
    hue: float = 0.1,
    saturation: float = 1.5,
    exposure: float = 1.5,
) -> Sample:
    """YOLOv1's and v2's: every border moved by a share of up to `jitter`, stretched, colours, mirrored half the time.

    v1 moves borders by up to .2, v2 by .3; beyond the picture it is grey.
    """

    def geometry(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> Transformed:
        top, left, bottom, right = rng.uniform(-jitter, jitter, 4)  # shares that are cut off, or added
        height, width = side / (1 - top - bottom), side / (1 - left - right)
        size = max(round(height), 1), max(round(width), 1)
        image = darknet_colours(image, rng, hue=hue, saturation=saturation, exposure=exposure)
        return flip(place(image, boxes, side, (round(-top * height), round(-left * width)), size, GREY), rng)

    return one_picture(dataset, index, rng, geometry, pixels)


def mosaic(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    probability: float = 0.5,
    scale_range: tuple[float, float] = (0.4, 1.5),
    otherwise: tuple[float, float] = (0.1, 2.0),
) -> Sample:
    """Four pictures around a random centre (YOLOv4, section 3.4), with `probability`; else `jittered` by `otherwise`.

    The picture and three more, drawn at random, each fill a quarter of the canvas as `jittered` fills the whole.
    """
    if rng.uniform() >= probability:
        return jittered(dataset, index, rng, side=side, pixels=pixels, scale_range=otherwise)
    centre_x, centre_y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * side)
    partners = [index, *(int(i) for i in rng.integers(len(dataset), size=3))]
    corners = [(0, 0), (centre_x, 0), (0, centre_y), (centre_x, centre_y)]
    ends = [(centre_x, centre_y), (side, centre_y), (centre_x, side), (side, side)]
    canvas = np.zeros((side, side, 3), np.uint8)
    parts = []
    for partner, (left, top), (right, bottom) in zip(partners, corners, ends, strict=True):
        # What is cut to a sliver cannot be recognised: a quarter of the object must be left.
        geometry = partial(
            jitter_and_flip,
            side=side,
            scale_range=scale_range,
            frame=(bottom - top, right - left),
            min_visible=0.25,
        )
        done, labels, crowds = one_picture(dataset, partner, rng, geometry, pixels)
        canvas[top:bottom, left:right] = done.image
        parts.append((done.boxes + np.array([left, top, left, top], np.float32), labels, crowds))
    return together(canvas, (side, side), parts)


def mixup(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    probability: float = 0.5,
    beta: float = 1.5,
    of: str = "efficientdet_mild",
) -> Sample:
    """Two samples of the recipe `of` blended, with `probability`; the objects of both are to be found.

    Zhang et al.: "Bag of Freebies for Training Object Detection Neural Networks", 2019, section 3.1: the weight of the
    first picture is drawn from Beta(1.5, 1.5). There the losses of an object carry the weight of its picture; here all
    objects count alike, as a target has no weight.
    """
    if of not in AUGMENTATIONS or of == "mixup":
        raise UserError(f"data.augmentation_options.of is {of!r}; choose one of {', '.join(AUGMENTATIONS)} but mixup")
    recipe = partial(AUGMENTATIONS[of], side=side, pixels=pixels)
    first, *first_objects = recipe(dataset, index, rng)
    if rng.uniform() >= probability:
        return (first, *first_objects)
    second, *second_objects = recipe(dataset, int(rng.integers(len(dataset))), rng)
    weight = rng.beta(beta, beta)
    image = cv2.addWeighted(first.image, weight, second.image, 1 - weight, 0)
    size = tuple(max(a, b) for a, b in zip(first.size, second.size, strict=True))
    return together(image, size, [(first.boxes, *first_objects), (second.boxes, *second_objects)])


AUGMENTATIONS: dict[str, Recipe] = {
    "none": fitted,
    "flip": flipped,
    "efficientdet": jittered,
    "efficientdet_mild": partial(jittered, scale_range=(0.8, 1.2)),
    "large_scale_jitter": jittered,
    "ssd": ssd,
    "yolo": yolo,
    "yolo_crop": yolo_crop,
    "mosaic": mosaic,
    "mixup": mixup,
    "copy_paste": copy_paste,
}
STRETCHED = {"ssd", "yolo_crop"}  # their papers stretch pictures to the square at test time, too
OUTLINED = {"copy_paste"}  # need outlines
ANY_SIZE = {"none", "flip"}  # do without a side
# Move boxes without asking what they are, so that proposals can go with them. The others choose by the objects.
CARRY_PROPOSALS = set(AUGMENTATIONS) - {"ssd", "mixup", "copy_paste"}


def make_recipe(name: str, options: dict[str, Any], *, resize: str) -> Recipe:
    """An augmentation with its options; it is called with (dataset, index, stream, side, pixels).

    Raises:
        UserError: an option that the augmentation does not have.
    """
    recipe = AUGMENTATIONS[name]
    known = set(inspect.signature(recipe).parameters) - {"dataset", "index", "rng", "side", "pixels", "resize"}
    for option in options:
        if option not in known:
            raise UserError(
                f"data.augmentation_options has {option!r}, which {name} does not know; it has "
                f"{', '.join(sorted(known)) or 'none'}"
            )
    if "resize" in inspect.signature(recipe).parameters:
        recipe = partial(recipe, resize=resize)
    return partial(recipe, **options)
