"""Small datasets in COCO's and VOC's format, made for one test."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def picture(file: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    """Write noise as a picture in the format of its ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return file


def coco(folder: Path, **changes: Any) -> Path:
    """Two pictures, two boxes, categories 3 and 7; `changes` replace whole lists. Returns the annotation file."""
    picture(folder / "images" / "a.jpg")
    picture(folder / "images" / "b.jpg", seed=1)
    content = {
        "images": [
            {"id": 10, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 100, "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [20.5, 3, 10, 5], "area": 50, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        **changes,
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return file


def annotation(**changes: Any) -> dict[str, Any]:
    """One annotation for `coco`."""
    return {"id": 9, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 100, "iscrowd": 0} | changes


def voc(folder: Path, objects: list[tuple[str, tuple[Any, ...], int]], name: str = "x") -> Path:
    """A picture with objects (class, (xmin, ymin, xmax, ymax), difficult). Returns the folder."""
    picture(folder / "JPEGImages" / f"{name}.jpg")
    nodes = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for label, box, difficult in objects
    )
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height></size>{nodes}</annotation>"
    )
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    with open(lists / "train.txt", "a") as file:
        file.write(f"{name}\n")
    return folder
