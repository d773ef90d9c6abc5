"""All augmentation, and the only place that knows albumentations.

A transform takes an image (H, W, 3) uint8 RGB, boxes (n, 4) float32 XYXY in its pixels and a random stream, and gives
the same of the transformed image, with the positions of the boxes that are left.
"""

import os
import warnings
from typing import Any, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version

import albumentations as A
import cv2
import numpy as np

from errors import UserError

MIN_SIDE = 1.0  # pixels that must be left of a box after a crop


class Transformed(NamedTuple):
    """A transformed image and what became of its boxes."""

    image: np.ndarray  # (H, W, 3) uint8
    boxes: np.ndarray  # (m, 4) float32 XYXY
    kept: np.ndarray  # (m,) int64, positions of these boxes among the given ones
    size: tuple[int, int]  # (height, width) of the picture within the image, at the top left; the rest is padding
    scale: tuple[float, float]  # (x, y) from original to transformed pixels, where nothing was cropped


def resize_to_fit(image: np.ndarray, boxes: np.ndarray, side: int | None) -> Transformed:
    """Resize the longer side to `side`, keep the aspect ratio, pad to a square at the bottom and right with zeros.

    The transform of validation, test and prediction. `side` None leaves the image as it is.
    """
    height, width = image.shape[:2]
    kept = np.arange(len(boxes))
    if side is None:
        return Transformed(image, boxes, kept, (height, width), (1.0, 1.0))
    factor = side / max(height, width)
    new_height, new_width = max(round(height * factor), 1), max(round(width * factor), 1)
    scale = (new_width / width, new_height / height)
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:new_height, :new_width] = _resize(image, new_width, new_height)
    boxes = boxes * np.array([*scale, *scale], np.float32)
    return Transformed(canvas, boxes.astype(np.float32), kept, (new_height, new_width), scale)


def stretch(image: np.ndarray, boxes: np.ndarray, side: int | None) -> Transformed:
    """Resize to the square of `side` whatever the aspect ratio, as SSD, YOLOv1 and YOLOv2 do.

    `side` None leaves the image as it is.
    """
    height, width = image.shape[:2]
    if side is None:
        return Transformed(image, boxes, np.arange(len(boxes)), (height, width), (1.0, 1.0))
    scale = (side / width, side / height)
    boxes = (boxes * np.array([*scale, *scale], np.float32)).astype(np.float32)
    return Transformed(_resize(image, side, side), boxes, np.arange(len(boxes)), (side, side), scale)


class Window(NamedTuple):
    """A part of a picture, and where it goes: resized to `out`, at the top left of a frame."""

    top: int
    left: int
    height: int
    width: int
    out: tuple[int, int]  # (height, width)
    frame: tuple[int, int]  # (height, width), at least `out`

    def cut(self, image: np.ndarray, boxes: np.ndarray, min_visible: float = 0.0) -> Transformed:
        """The window with what it shows of the boxes; those with less than a pixel or `min_visible` are dropped."""
        out_height, out_width = self.out
        canvas = np.zeros((*self.frame, 3), np.uint8)
        canvas[:out_height, :out_width] = _resize(self._of(image), out_width, out_height)
        scale = np.array([out_width / self.width, out_height / self.height], np.float32)
        boxes = (boxes - np.array([self.left, self.top, self.left, self.top], np.float32)) * np.tile(scale, 2)
        boxes, kept = clip_boxes(boxes, out_width, out_height, min_visible)
        return Transformed(canvas, boxes, kept, self.out, (1.0, 1.0))

    def cut_masks(self, masks: np.ndarray) -> np.ndarray:
        """Masks (n, H, W) bool as the window shows them: (n, frame height, frame width) bool."""
        result = np.zeros((len(masks), *self.frame), bool)
        for mask, whole in zip(result, masks, strict=True):
            part = 255 * self._of(whole).astype(np.uint8)
            mask[: self.out[0], : self.out[1]] = _resize(part, self.out[1], self.out[0]) > 127
        return result

    def _of(self, image: np.ndarray) -> np.ndarray:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def jitter(
    image: np.ndarray,
    boxes: np.ndarray,
    side: int,
    rng: np.random.Generator,
    scale_range: tuple[float, float] = (0.1, 2.0),
    frame: tuple[int, int] | None = None,
    min_visible: float = 0.0,
) -> Transformed:
    """The `jitter_window` of a picture. Boxes with less than a pixel or the share `min_visible` left are dropped."""
    return jitter_window(image.shape[:2], side, rng, scale_range, frame).cut(image, boxes, min_visible)


def jitter_window(
    size: tuple[int, int],
    side: int,
    rng: np.random.Generator,
    scale_range: tuple[float, float] = (0.1, 2.0),
    frame: tuple[int, int] | None = None,
) -> Window:
    """EfficientDet's scale jitter: resize to a random multiple of the target, then crop or pad to it.

    A picture of `size` (height, width) is fitted into `side` times a factor drawn from `scale_range`; a window of the
    size of `frame` (height, width; by default the square of `side`) at a random place is cut from it, or the rest is
    padded at the bottom and right (google/automl, dataloader.py). In order to resize no more than is seen, the window
    is cut from the original, in whole pixels.
    """
    height, width = size
    frame_height, frame_width = frame or (side, side)
    factor = rng.uniform(*scale_range) * side / max(height, width)
    out_height = min(max(round(height * factor), 1), frame_height)
    out_width = min(max(round(width * factor), 1), frame_width)
    window_height = min(max(round(frame_height / factor), 1), height)
    window_width = min(max(round(frame_width / factor), 1), width)
    top = int(rng.integers(height - window_height + 1))
    left = int(rng.integers(width - window_width + 1))
    return Window(top, left, window_height, window_width, (out_height, out_width), (frame_height, frame_width))


def place(
    image: np.ndarray,
    boxes: np.ndarray,
    side: int,
    corner: tuple[int, int],
    size: tuple[int, int],
    fill: tuple[int, int, int],
) -> Transformed:
    """A picture resized to `size` (height, width), its top left at `corner` (y, x) of a square of `side` pixels.

    It may reach beyond the square on any side; what it does not cover is `fill`, and counts as picture.
    """
    (top, left), (height, width) = corner, size
    resized = _resize(image, width, height)
    canvas = np.full((side, side, 3), fill, np.uint8)
    rows = slice(max(top, 0), min(top + height, side))
    columns = slice(max(left, 0), min(left + width, side))
    seen = resized[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[rows, columns] = seen
    scale = np.array([width / image.shape[1], height / image.shape[0]], np.float32)
    boxes, kept = clip_boxes(boxes * np.tile(scale, 2) + np.array([left, top, left, top], np.float32), side, side)
    return Transformed(canvas, boxes, kept, (side, side), (1.0, 1.0))


def flip(done: Transformed, rng: np.random.Generator) -> Transformed:
    """Mirror left and right with probability one half; padding stays at the right."""
    return done if rng.uniform() < 0.5 else mirror(done)


def mirror(done: Transformed) -> Transformed:
    """Mirror left and right; padding stays at the right."""
    width = done.size[1]
    image = done.image.copy()
    image[:, :width] = cv2.flip(done.image[:, :width], 1)
    boxes = done.boxes.copy()
    boxes[:, [0, 2]] = width - done.boxes[:, [2, 0]]
    return done._replace(image=image, boxes=boxes)


class Pixels:
    """albumentations on the original picture, before it is resized: colours, noise, blur, also geometry.

    Args:
        transforms: what `albumentations.Compose` takes, as objects or as dictionaries of `class_path` (the name in
            albumentations) and `init_args`.

    Raises:
        UserError: an unknown transform, or an argument that it does not have.
    """

    def __init__(self, transforms: list[Any]) -> None:
        # Boxes of real datasets reach over the border and are sometimes empty: albumentations refuses both unless told
        # to clip and to drop. Labels ride along as positions, so that everything else can be re-indexed.
        boxes = A.BboxParams(format="pascal_voc", label_fields=["positions"], clip=True, filter_invalid_bboxes=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got processor for bboxes")  # colours alone leave boxes where they are
            self.compose = A.Compose([_build(transform) for transform in transforms], bbox_params=boxes)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, masks: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """The transformed image, the boxes left, their positions among the given ones, and the masks of these, if any.

        Raises:
            UserError: the result is no longer a picture of bytes: the network normalises by itself.
        """
        # Unseeded, albumentations repeats one stream in all workers and all epochs.
        self.compose.set_random_seed(int(rng.integers(2**32)))
        more = {} if masks is None else {"masks": list(masks.astype(np.uint8))}
        result = self.compose(image=image, bboxes=boxes, positions=np.arange(len(boxes)), **more)
        image = result["image"]
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
            raise UserError(
                f"data.transforms give {image.dtype} of shape {tuple(image.shape)}, but pictures must stay uint8 "
                "(H, W, 3): leave out Normalize, ToFloat, ToTensorV2 and the like, the network normalises by itself"
            )
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        positions = np.asarray(result["positions"]).reshape(-1).astype(np.int64)
        if masks is None:
            return image, boxes, positions
        masks = np.array(result["masks"], bool).reshape(-1, *image.shape[:2])
        return image, boxes, positions, masks[positions]


def _build(transform: Any) -> A.BasicTransform:
    if not isinstance(transform, dict):
        return transform
    name = str(transform.get("class_path", "")).removeprefix("albumentations.")
    kind = getattr(A, name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
        raise UserError(f"data.transforms: albumentations has no transform {name!r}; see its documentation for names")
    arguments = dict(transform.get("init_args") or {})
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner) for inner in arguments["transforms"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of an argument that it does not know, and ignores it
        try:
            return kind(**arguments)
        except (UserWarning, TypeError, ValueError) as error:
            raise UserError(
                f"data.transforms: {name} does not take {arguments}: {' '.join(str(error).split())}"
            ) from error


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear, as the authors do; halved first while it shrinks to less than half.

    Halving bilinearly is the mean of 2 x 2 pixels: nothing is skipped, so that fine patterns do not alias, at a
    quarter of the time of OpenCV's mean over areas.
    """
    while image.shape[1] > 2 * width and image.shape[0] > 2 * height:
        image = cv2.resize(image, ((image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2))
    return cv2.resize(image, (width, height))


def clip_boxes(boxes: np.ndarray, width: int, height: int, min_visible: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) cut off at the border, those with less than a pixel or `min_visible` left out, and the positions."""
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32)).astype(np.float32)
    sides, all_sides = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((sides >= MIN_SIDE).all(1) & (sides.prod(1) >= min_visible * all_sides.prod(1)))
    return clipped[kept], kept
