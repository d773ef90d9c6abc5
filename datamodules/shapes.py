"""Sample data: coloured and textured shapes over noisy backgrounds, in COCO's layout, made on first use."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from datamodules.annotations import DetectionAnnotations
from datamodules.coco_file import read_coco
from datamodules.detection import DetectionDataModule
from datamodules.randomness import sample_rng
from datamodules.resumable_module import SPLITS
from datamodules.sample_pictures import SamplePictures

CLASSES = ("circle", "square", "triangle", "star", "ring")
# The fill that most shapes of a class have; the others have any. Shape alone takes a network longer to learn than the
# few minutes that a first run should take.
USUAL_FILL = {"circle": "plain", "square": "checkered", "triangle": "striped", "star": "dotted", "ring": "plain"}
# Of the pictures: the digest of this file, so that what an older one has drawn never passes for its work.
VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


class ShapesDetection(SamplePictures, DetectionDataModule):
    """Sample data with which every system runs without a download.

    `<root>/<size>px_<train>_<val>_<test>_seed<seed>_<version>/` gets COCO's layout: `images/{train,val,test}/*.jpg`
    and `annotations/instances_{train,val,test}.json` with boxes and run-length masks of the visible parts. The
    pictures are a function of the arguments; other arguments make another folder.

    Args:
        root: folder below which the data is kept.
        **common: see `SamplePictures` and `DetectionDataModule`.
    """

    name = "shapes"
    version = VERSION

    def __init__(self, root: str = "data/shapes", **common: Any) -> None:
        super().__init__(root=root, **common)

    @property
    def class_names(self) -> list[str]:
        """The shapes."""
        return list(CLASSES)

    def _read(self, split: str) -> DetectionAnnotations:
        self._make()
        return read_coco(
            self.folder / "annotations" / f"instances_{split}.json",
            self.folder / "images" / split,
            outlines=self.needs_outlines(split),
        )

    def _generate(self) -> None:
        generate(self.folder, self.counts, self.picture_size, self.picture_seed)


def generate(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Draw all splits into `folder`, which appears only when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "annotations").mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        (unfinished / "images" / split).mkdir(parents=True)
        content: dict[str, Any] = {
            "info": {"description": "shapes drawn by Triptych", "version": VERSION},
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)],
        }
        for index in range(counts[split]):
            image, classes, masks = draw(sample_rng(seed, number, index), size)
            file_name = f"{index:06d}.jpg"
            write_jpeg(unfinished / "images" / split / file_name, image)
            content["images"].append(
                {"id": index + 1, "file_name": file_name, "height": image.shape[0], "width": image.shape[1]}
            )
            for label, mask in zip(classes, masks, strict=True):
                encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": coco_mask.toBbox(encoded).tolist(),
                        "area": int(coco_mask.area(encoded)),
                        "iscrowd": 0,
                        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                    }
                )
        (unfinished / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    os.replace(unfinished, folder)


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
    """One picture.

    Returns:
        The picture (H, W, 3) uint8 RGB with the longer side `size`; the classes of its shapes, 0-based; the masks
        (H, W) bool of their visible parts. One picture in twelve is empty.
    """
    short = int(rng.integers(round(0.75 * size), size + 1))
    height, width = (size, short) if rng.uniform() < 0.5 else (short, size)
    image = _background(rng, height, width)
    owner = np.full((height, width), -1)  # the topmost shape of every pixel
    classes: list[int] = []
    count = 0 if rng.uniform() < 1 / 12 else int(rng.integers(1, 6))
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        # Sizes evenly spread in logarithm: small to large.
        diameter = float(np.exp(rng.uniform(np.log(0.18), np.log(0.65)))) * size
        mask = _shape(rng, label, diameter, height, width)
        hidden = np.bincount(owner[mask & (owner >= 0)], minlength=len(classes))
        visible = np.array([(owner == k).sum() for k in range(len(classes))], dtype=int)
        if not mask.any() or np.any(hidden > 0.4 * visible):
            continue  # it would bury another shape
        image = np.where(mask[..., None], _texture(rng, image, mask, CLASSES[label]), image)
        owner[mask] = len(classes)
        classes.append(label)
    image = image + rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), classes, [owner == k for k in range(len(classes))]


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write a picture of `draw`."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())


def class_mask(classes: list[int], masks: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The picture of `draw` as a semantic mask: (H, W) uint8, 0 for background, class + 1 elsewhere."""
    result = np.zeros((height, width), np.uint8)
    for label, mask in zip(classes, masks, strict=True):
        result[mask] = label + 1
    return result


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A soft gradient between two muted colours, with blotches and grain."""
    first, second = rng.uniform(60, 190, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] / max(height, width)
    ramp = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.2, 0.8) * (x * np.cos(angle) + y * np.sin(angle)))
    blotches = cv2.resize(rng.normal(0, 18, (7, 7)), (width, height), interpolation=cv2.INTER_CUBIC)
    return first + (second - first) * ramp[..., None] + blotches[..., None]


def _shape(rng: np.random.Generator, label: int, diameter: float, height: int, width: int) -> np.ndarray:
    """A mask (H, W) bool of a shape at a random place, mostly inside."""
    radius = diameter / 2
    centre = rng.uniform([0.6 * radius] * 2, [width - 0.6 * radius, height - 0.6 * radius])
    angle = rng.uniform(0, 2 * np.pi)
    mask = np.zeros((height, width), np.uint8)
    name = CLASSES[label]
    if name in ("circle", "ring"):
        cv2.circle(mask, tuple(round(v) for v in centre), round(radius), 1, -1)
        if name == "ring":
            cv2.circle(mask, tuple(round(v) for v in centre), round(0.55 * radius), 0, -1)
        return mask > 0
    corners = {"square": 4, "triangle": 3, "star": 10}[name]
    turns = angle + 2 * np.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2 == 0, radius, 0.42 * radius) if name == "star" else radius
    points = centre + np.stack([np.cos(turns), np.sin(turns)], 1) * np.reshape(radii, (-1, 1))
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask > 0


def _texture(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """A plain, striped, checkered or dotted fill (H, W, 3) whose colour stands out from what it covers."""
    covered = image[mask].mean(0)
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - covered).max() < 90:
        colour = rng.uniform(0, 255, 3)
    height, width = mask.shape
    y, x = np.mgrid[:height, :width]
    period = rng.uniform(6, 14)
    fill = USUAL_FILL[name] if rng.uniform() < 0.8 else str(rng.choice(["plain", "striped", "checkered", "dotted"]))
    if fill == "plain":
        pattern = np.zeros((height, width), bool)
    elif fill == "striped":
        angle = rng.uniform(0, np.pi)
        pattern = ((x * np.cos(angle) + y * np.sin(angle)) / period) % 1 < 0.4
    elif fill == "checkered":
        pattern = ((x // period) + (y // period)) % 2 < 1
    else:
        pattern = ((x % period) - period / 2) ** 2 + ((y % period) - period / 2) ** 2 < (0.3 * period) ** 2
    return np.where(pattern[..., None], 0.65 * colour, colour)
