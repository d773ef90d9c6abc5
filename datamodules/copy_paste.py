"""Objects cut out along their outlines and pasted into other pictures.

Ghiasi et al.: "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021, section 3.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datamodules.samples import Sample, together
from datamodules.transforms import MIN_SIDE, Pixels, Transformed, jitter_window, mirror

if TYPE_CHECKING:
    from datamodules.dataset import DetectionDataset


@dataclass
class Scene:
    """A picture after its own jitter, with the masks of its objects."""

    done: Transformed
    labels: np.ndarray  # (n,)
    crowds: np.ndarray  # (n,) bool
    masks: np.ndarray  # (n, side, side) bool

    def take(self, rows: np.ndarray) -> "Scene":
        """The picture with some of its objects."""
        done = self.done._replace(boxes=self.done.boxes[rows], kept=self.done.kept[rows])
        return Scene(done, self.labels[rows], self.crowds[rows], self.masks[rows])


def copy_paste(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    *,
    side: int,
    pixels: Pixels | None,
    probability: float = 1.0,
    scale_range: tuple[float, float] = (0.1, 2.0),
    share: float = 0.5,
    min_visible: float = 0.1,
) -> Sample:
    """Two pictures, each jittered in scale, cropped or padded, mirrored half the time; one's objects go to the other.

    Boxes of objects that are partly covered shrink to what is still seen. As in the paper edges are not blended.

    Args:
        dataset: has outlines.
        index: of the picture that objects are pasted into; the other one is drawn.
        rng: random stream.
        side: of the sample.
        pixels: what the user applies first.
        probability: of pasting at all.
        scale_range: of the jitter; the paper's large-scale jitter. .8 to 1.25 is its standard one.
        share: chance of each object of the other picture to be pasted. Crowds never are.
        min_visible: objects of which a smaller share is still seen are left out (the paper's program keeps what has 300
            pixels left).
    """
    scene = _scene(dataset, index, rng, side, pixels, scale_range)
    if rng.uniform() >= probability:
        return scene.done, scene.labels, scene.crowds
    other = _scene(dataset, int(rng.integers(len(dataset))), rng, side, pixels, scale_range)
    pasted = other.take(np.flatnonzero((rng.uniform(size=len(other.labels)) < share) & ~other.crowds))
    return paste(scene, pasted, min_visible)


def paste(scene: Scene, pasted: Scene, min_visible: float) -> Sample:
    """The objects of `pasted` before those of `scene`."""
    cover = pasted.masks.any(0)
    image = np.where(cover[..., None], pasted.done.image, scene.done.image)
    before = scene.masks.sum((1, 2))
    visible = scene.masks & ~cover
    after = visible.sum((1, 2))
    boxes = scene.done.boxes.copy()
    touched = after < before
    for i in np.flatnonzero(touched):
        boxes[i] = outline(visible[i])
    kept = np.flatnonzero(
        ~touched | ((after >= min_visible * before) & ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(1))
    )
    rows, columns = (np.flatnonzero(cover.any(axis)) for axis in (1, 0))
    height, width = scene.done.size
    if len(rows):  # what was pasted into the padding counts as picture
        height, width = max(height, int(rows[-1]) + 1), max(width, int(columns[-1]) + 1)
    return together(
        image,
        (height, width),
        [
            (boxes[kept], scene.labels[kept], scene.crowds[kept]),
            (pasted.done.boxes, pasted.labels, pasted.crowds),
        ],
    )


def outline(mask: np.ndarray) -> np.ndarray:
    """The box (4,) XYXY around a mask (H, W); zeros if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _scene(
    dataset: "DetectionDataset",
    index: int,
    rng: np.random.Generator,
    side: int,
    pixels: Pixels | None,
    scale_range: tuple[float, float],
) -> Scene:
    image, objects = dataset.load(index)
    masks = dataset.masks(objects, image.shape[:2])
    boxes, labels, crowds = objects["boxes"], objects["labels"], objects["iscrowd"]
    if pixels is not None:
        image, boxes, positions, masks = pixels(image, boxes, rng, masks)
        labels, crowds = labels[positions], crowds[positions]
    window = jitter_window(image.shape[:2], side, rng, scale_range)
    done = window.cut(image, boxes)
    masks = window.cut_masks(masks[done.kept])
    if rng.uniform() < 0.5:
        done = mirror(done)
        masks[:, :, : done.size[1]] = masks[:, :, : done.size[1]][:, :, ::-1].copy()
    return Scene(done, labels[done.kept], crowds[done.kept], masks)
