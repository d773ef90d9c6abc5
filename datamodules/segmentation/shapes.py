"""Sample data: the shapes of `datamodules.shapes` with masks, in VOC's layout, made on first use."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datamodules import shapes
from datamodules.randomness import sample_rng
from datamodules.resumable_module import SPLITS
from datamodules.sample_pictures import SamplePictures
from datamodules.segmentation.masks import IGNORED, voc_palette
from datamodules.segmentation.module import SegmentationDataModule
from datamodules.segmentation.samples import SegmentationSamples
from datamodules.segmentation.voc import VocSets, read_pairs

CLASSES = ("background", *shapes.CLASSES)
# Of the pictures: what draws them and what writes them.
VERSION = hashlib.sha256(shapes.VERSION.encode() + Path(__file__).read_bytes()).hexdigest()[:8]


class ShapesSegmentation(SamplePictures, SegmentationDataModule):
    """Sample data with which every segmenter runs without a download.

    `<root>/<size>px_<train>_<val>_<test>_seed<seed>_<version>/` gets VOC's layout: `JPEGImages/*.jpg`,
    `SegmentationClass/*.png` with VOC's palette and a void border of two pixels around every shape, and
    `ImageSets/Segmentation/{train,val,test}.txt`. The pictures are a function of the arguments; other arguments make
    another folder.

    Args:
        root: folder below which the data is kept.
        **common: see `SamplePictures` and `SegmentationDataModule`.
    """

    name = "shapes_segmentation"
    version = VERSION

    def __init__(self, root: str = "data/shapes_segmentation", **common: Any) -> None:
        super().__init__(root=root, **common)

    @property
    def class_names(self) -> list[str]:
        """The background and the shapes."""
        return list(CLASSES)

    def _read(self, split: str) -> SegmentationSamples:
        self._make()
        return read_pairs(VocSets(self.folder, self.folder).pairs([f"./{split}"]), self.class_names)

    def _generate(self) -> None:
        generate(self.folder, self.counts, self.picture_size, self.picture_seed)


def generate(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Draw all splits into `folder`, which appears only when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    lists = unfinished / "ImageSets" / "Segmentation"
    for part in (unfinished / "JPEGImages", unfinished / "SegmentationClass", lists):
        part.mkdir(parents=True)
    palette = voc_palette().tobytes()
    for number, split in enumerate(SPLITS):
        stems = [f"{split}_{index:06d}" for index in range(counts[split])]
        for index, stem in enumerate(stems):
            image, classes, masks = shapes.draw(sample_rng(seed, number, index), size)
            shapes.write_jpeg(unfinished / "JPEGImages" / f"{stem}.jpg", image)
            mask = Image.fromarray(with_border(shapes.class_mask(classes, masks, *image.shape[:2]), masks))
            mask.putpalette(palette)
            mask.save(unfinished / "SegmentationClass" / f"{stem}.png")
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    os.replace(unfinished, folder)


def with_border(labels: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Labels (H, W) uint8 with void on both sides of every object's outline: two pixels in all, as VOC leaves five."""
    result = labels.copy()
    for mask in masks:
        # What lies beyond the picture is taken as its last pixel repeated: no outline along the frame.
        outline = cv2.morphologyEx(
            mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE
        )
        result[outline > 0] = IGNORED
    return result
