"""Small datasets of pictures and masks, made for one test."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.segmentation.masks import voc_palette
from tests.datamodules.builders import picture

LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:20, 10:30] = 1
LABELS[5, 10:30] = 255


def mask(file: Path, labels: np.ndarray = LABELS, mode: str = "P") -> Path:
    """Write labels as a PNG: palette indices (P), gray values (L) or VOC's colours (RGB)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if mode != "L":
        image.putpalette(voc_palette().tobytes())
    image.convert(mode).save(file)
    return file


def folder(root: Path, names: tuple[str, ...] = ("a", "b"), split: str = "train", **options) -> Path:
    """Pictures and masks below `<root>/<split>/images` and `<root>/<split>/masks`. Returns `root`."""
    for seed, name in enumerate(names):
        picture(root / split / "images" / f"{name}.jpg", seed=seed)
        mask(root / split / "masks" / f"{name}.png", **options)
    return root


def voc(root: Path, stems: list[str], listing: str = "train") -> Path:
    """VOC's layout. Returns `root`."""
    for stem in stems:
        picture(root / "JPEGImages" / f"{stem}.jpg")
        mask(root / "SegmentationClass" / f"{stem}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{listing}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root
