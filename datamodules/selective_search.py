"""Selective search (Uijlings et al.: "Selective Search for Object Recognition", IJCV 2013).

The first segmentation is scikit-image's (BSD, maintained); grouping the segments is written here. OpenCV's complete
implementation comes with `opencv-contrib` alone, whose wheel fills the same folder `cv2` as `opencv-python-headless`,
which albumentations requires: only one of the two can be installed. The packages `selectivesearch` and
`selective-search` are no longer maintained, and group segment by segment in Python.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.ndimage import find_objects
from skimage.segmentation import felzenszwalb

from datamodules.proposals import ProposalSource
from errors import UserError

COLOURS = ("hsv", "lab", "rgb", "gray")
MEASURES = {"c": "colour", "t": "texture", "s": "size", "f": "fill"}
COLOUR_BINS = 25  # per channel
TEXTURE_BINS = 10  # per channel and direction
DIRECTIONS = 8
STEEPEST = 0.4  # the derivative of a step from 0 to 1 under a Gaussian of one pixel
VERSION = 1  # of the boxes; raise it when a change of code changes them


class Regions(NamedTuple):
    """Segments of a picture.

    Attributes:
        sizes: (n,) float, shares of the picture's pixels.
        boxes: (n, 4) int64, XYXY, the ends exclusive.
        colours: (n, C) float, histograms of sum 1.
        textures: (n, T) float, histograms of sum 1.
        adjacent: (n, n) bool, which segments touch.
        area: of the picture in pixels.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    colours: np.ndarray
    textures: np.ndarray
    adjacent: np.ndarray
    area: int


class SelectiveSearch(ProposalSource):
    """Groups segments by similarity, most similar first; every group on the way gives a box.

    The defaults are the authors' "fast" mode, as R-CNN and its successors used it: two segmentations in two colour
    spaces, each grouped by two measures, about 2000 boxes of a picture 500 pixels wide.

    Args:
        cache: see `ProposalSource`, like `workers`.
        scales: of the segmentations; the larger, the larger the segments. The scale is also the least number of pixels
            of a segment.
        colours: spaces to segment and to compare in: `hsv`, `lab`, `rgb`, `gray`.
        similarities: what is added up to a similarity: letters of c(olour), t(exture), s(ize), f(ill).
        sigma: of the Gaussian before segmentation, in pixels.
        min_side: boxes with a smaller side are dropped, in pixels of the picture as it is searched.
        max_boxes: kept per picture; large groups are preferred, but not always (section 4.3 of the paper).
        width: pictures are resized to it first; None searches them as they are.
    """

    def __init__(
        self,
        *,
        cache: str | None = "data/proposals",
        workers: int | None = None,
        scales: Sequence[int] = (50, 100),
        colours: Sequence[str] = ("hsv", "lab"),
        similarities: Sequence[str] = ("ctsf", "tsf"),
        sigma: float = 0.8,
        min_side: int = 20,
        max_boxes: int = 2000,
        width: int | None = 500,
    ) -> None:
        super().__init__(cache=cache, workers=workers)
        for name, values, known in (("colours", colours, COLOURS), ("similarities", similarities, MEASURES)):
            parts = values if name == "colours" else [letter for value in values for letter in value]
            wrong = [part for part in parts if part not in known]
            if wrong or not parts:
                raise UserError(
                    f"data.proposals.{name} is {list(values)}: give at least one, made of {', '.join(known)}"
                )
        for name, value in (("scales", min(scales, default=0)), ("max_boxes", max_boxes), ("width", width or 1)):
            if value < 1:
                raise UserError(f"data.proposals.{name} must be at least 1")
        self.scales = list(scales)
        self.colours = list(colours)
        self.similarities = list(similarities)
        self.sigma = sigma
        self.min_side = min_side
        self.max_boxes = max_boxes
        self.width = width

    @property
    def settings(self) -> dict[str, Any]:
        """What the boxes depend on."""
        names = ("scales", "colours", "similarities", "sigma", "min_side", "max_boxes", "width")
        return {name: getattr(self, name) for name in names}

    @property
    def version(self) -> int:
        """Of the boxes."""
        return VERSION

    def search(self, image: np.ndarray) -> np.ndarray:
        """See `ProposalSource.search`."""
        height, width = image.shape[:2]
        if self.width is not None:
            new_height = max(round(height * self.width / width), 1)
            image = cv2.resize(image, (self.width, new_height), interpolation=cv2.INTER_LINEAR)
        rng = np.random.default_rng(0)  # the same for every picture
        boxes, priorities = [], []
        for colour in self.colours:
            channels = in_colour(image, colour)
            for scale in self.scales:
                segments = felzenszwalb(channels, scale=scale, sigma=self.sigma, min_size=scale, channel_axis=2)
                regions = describe(channels, segments)
                for similarity in self.similarities:
                    found = group(regions, similarity)
                    boxes.append(found)
                    # The last group, the whole picture, is number 1.
                    priorities.append(np.arange(len(found), 0, -1) * rng.uniform(size=len(found)))
        found = np.concatenate(boxes)[np.argsort(np.concatenate(priorities), kind="stable")]
        found = found[(found[:, 2:] - found[:, :2] >= self.min_side).all(1)]
        first = np.unique(found, axis=0, return_index=True)[1]
        found = found[np.sort(first)][: self.max_boxes].astype(np.float32)
        return found * np.tile(np.array([width / image.shape[1], height / image.shape[0]], np.float32), 2)


def in_colour(image: np.ndarray, space: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W, C) float32 from 0 to 1."""
    rgb = image.astype(np.float32) / 255
    if space == "rgb":
        return rgb
    if space == "gray":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
    if space == "hsv":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV) / np.array([360, 1, 1], np.float32)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB) + np.array([0, 128, 128], np.float32)
    return np.clip(lab / np.array([100, 255, 255], np.float32), 0, 1)


def describe(channels: np.ndarray, segments: np.ndarray) -> Regions:
    """Sizes, boxes, histograms and neighbours of segments.

    Args:
        channels: (H, W, C) float32 from 0 to 1.
        segments: (H, W) int, numbers 0 to n - 1, each used.
    """
    count = int(segments.max()) + 1
    sizes = np.bincount(segments.ravel(), minlength=count)
    spans = find_objects(segments + 1)
    boxes = np.array([[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in spans])
    adjacent = np.zeros((count, count), bool)
    for one, other in ((segments[:, :-1], segments[:, 1:]), (segments[:-1], segments[1:])):
        adjacent[one, other] = adjacent[other, one] = True
    np.fill_diagonal(adjacent, False)
    return Regions(
        sizes=sizes / segments.size,
        boxes=boxes,
        colours=histograms(channels, segments.ravel(), count, COLOUR_BINS),
        textures=histograms(slopes(channels), segments.ravel(), count, TEXTURE_BINS),
        adjacent=adjacent,
        area=segments.size,
    )


def slopes(channels: np.ndarray) -> np.ndarray:
    """Gaussian derivatives (sigma 1) in eight directions, the rising ones: (H, W, C) -> (H, W, 8 C) from 0 to 1."""
    smooth = cv2.GaussianBlur(channels, (0, 0), 1.0).reshape(channels.shape)
    down, right = (np.gradient(smooth, axis=axis) if smooth.shape[axis] > 1 else 0 * smooth for axis in (0, 1))
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    rising = [np.cos(angle) * right + np.sin(angle) * down for angle in angles]
    return np.clip(np.concatenate(rising, 2) / STEEPEST, 0, 1)


def histograms(values: np.ndarray, segments: np.ndarray, count: int, bins: int) -> np.ndarray:
    """A histogram per channel and segment, side by side: (H, W, C) from 0 to 1 -> (count, C * bins), rows of sum 1."""
    channels = values.shape[2]
    place = np.minimum((values.reshape(-1, channels) * bins).astype(np.int64), bins - 1) + bins * np.arange(channels)
    place += (segments * (channels * bins))[:, None]
    result = np.bincount(place.ravel(), minlength=count * channels * bins).reshape(count, -1)
    return result / result.sum(1, keepdims=True)


def group(regions: Regions, similarity: str) -> np.ndarray:
    """Join the two most similar neighbours until one region is left.

    Args:
        regions: what to begin with; left as they are.
        similarity: letters of `MEASURES`.

    Returns:
        Boxes (m, 4) int64 of all regions that there ever were, the first ones first, the whole picture last.
    """
    sizes, boxes, colours, textures, adjacent = (array.copy() for array in regions[:5])
    state = regions._replace(sizes=sizes, boxes=boxes, colours=colours, textures=textures, adjacent=adjacent)
    alike = np.full(adjacent.shape, -np.inf)
    for i in range(len(sizes)):
        near = np.flatnonzero(adjacent[i])
        alike[i, near] = _similarity(state, i, near, similarity)
    best = alike.max(1)
    found = [boxes.copy()]
    for _ in range(len(sizes) - 1):
        i = int(best.argmax())
        j = int(alike[i].argmax())
        # Region i becomes the union, region j ends.
        total = sizes[i] + sizes[j]
        for histogram in (colours, textures):
            histogram[i] = (sizes[i] * histogram[i] + sizes[j] * histogram[j]) / total
        sizes[i] = total
        boxes[i] = _union(boxes[i], boxes[j])
        found.append(boxes[[i]])
        adjacent[i] |= adjacent[j]
        adjacent[i, [i, j]] = False
        adjacent[:, i] = adjacent[i]
        adjacent[j] = adjacent[:, j] = False
        alike[[i, j]] = alike[:, [i, j]] = -np.inf
        best[[i, j]] = -np.inf
        near = np.flatnonzero(adjacent[i])
        if len(near):
            alike[i, near] = alike[near, i] = _similarity(state, i, near, similarity)
            best[near] = alike[near].max(1)
            best[i] = alike[i].max()
    return np.concatenate(found)


def _similarity(regions: Regions, i: int, near: np.ndarray, similarity: str) -> np.ndarray:
    """Of region i and each of `near` (section 3.2 of the paper): the sum of the measures, each at most 1."""
    total = np.zeros(len(near))
    for letter in similarity:
        if letter == "c":
            total += np.minimum(regions.colours[i], regions.colours[near]).sum(1)
        elif letter == "t":
            total += np.minimum(regions.textures[i], regions.textures[near]).sum(1)
        elif letter == "s":  # small regions first
            total += 1 - regions.sizes[i] - regions.sizes[near]
        else:  # those that fill their common box
            union = _union(regions.boxes[i], regions.boxes[near])
            box = (union[:, 2:] - union[:, :2]).prod(1) / regions.area
            total += 1 - (box - regions.sizes[i] - regions.sizes[near])
    return total


def _union(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The smallest boxes around one and each of others (..., 4)."""
    return np.concatenate([np.minimum(box, others)[..., :2], np.maximum(box, others)[..., 2:]], -1)


def known_source(description: dict[str, Any]) -> ProposalSource:
    """The source that a checkpoint describes, without a cache; see `ProposalSource.description`.

    Raises:
        UserError: it is none of the project's.
    """
    if description["kind"] != SelectiveSearch.__name__:
        raise UserError(
            f"the checkpoint's proposals come from {description['kind']!r}, which only the code that trained it has"
        )
    return SelectiveSearch(cache=None, **description["settings"])
