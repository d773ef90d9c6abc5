"""COCO's instances as semantic masks, or those of any dataset in COCO's format."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from datamodules.annotations import DetectionAnnotations
from datamodules.coco import CocoDetection
from datamodules.outlines import run_lengths
from datamodules.segmentation.masks import IGNORED
from datamodules.segmentation.module import SegmentationDataModule
from datamodules.segmentation.samples import SegmentationSamples
from errors import UserError


class CocoSegmentation(SegmentationDataModule):
    """Every pixel gets the class of its object, 0 where there is none; crowds do not count (255).

    The defaults are COCO 2017's layout below `root`. For a dataset of your own, name your files and folders, absolute
    or below `root`; `test_annotations` is optional, `val_annotations` too (`null`).

    torchvision trained its segmenters on those pictures of COCO that show VOC's classes: `categories` in VOC's order,
    `min_area` 1001, `overlap` void.

    Args:
        root: the dataset's folder.
        train_annotations: JSON file of the training split.
        train_images: its image folder.
        val_annotations: of the validation split.
        val_images: its image folder.
        test_annotations: of the test split.
        test_images: its image folder.
        categories: names in the order of the labels from 1; objects of others are background. None takes all, in the
            order of their ids.
        min_area: square pixels that objects of these must cover in a training picture; others are left out.
        overlap: where objects overlap, the `smaller` one is in front, or no pixel counts (`void`).
        download: fetch COCO 2017 (19 GB) into `root` if it is not there.
        **common: see `SegmentationDataModule`.
    """

    name = "coco_segmentation"

    def __init__(
        self,
        root: str = "data/coco",
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str | None = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_annotations: str | None = None,
        test_images: str | None = None,
        categories: list[str] | None = None,
        min_area: int = 0,
        overlap: Literal["smaller", "void"] = "smaller",
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.instances = CocoDetection(
            root=root,
            train_annotations=train_annotations,
            train_images=train_images,
            val_annotations=val_annotations,
            val_images=val_images,
            test_annotations=test_annotations,
            test_images=test_images,
            download=download,
        )
        self.categories = categories
        self.min_area = min_area
        self.overlap = overlap

    @property
    def splits(self) -> list[str]:
        """The splits that have an annotation file."""
        return self.instances.splits

    @property
    def class_names(self) -> list[str]:
        """The background and the categories."""
        return ["background", *(self.categories or self.instances.class_names)]

    def _read(self, split: str) -> SegmentationSamples:
        annotations = self.instances.annotations(split)
        file = self.instances.root / self.instances.files[split][0]
        labels = np.zeros(len(annotations.class_names), np.int64)
        for label, name in enumerate(self.class_names[1:], 1):
            if name not in annotations.class_names:
                raise UserError(
                    f"data.categories holds {name!r}, which {file} does not list; it lists "
                    f"{', '.join(annotations.class_names)}"
                )
            labels[annotations.class_names.index(name)] = label
        if len(self.class_names) > IGNORED:
            raise UserError(
                f"{file}: lists {len(annotations.class_names)} categories, but there can be {IGNORED - 1} at most; "
                "choose some with --data.categories"
            )
        least = self.min_area if split == "train" else 0
        return CocoMasks(file, annotations, labels, min_area=least, overlap=self.overlap)


class CocoMasks(SegmentationSamples):
    """Paints the masks of a picture's objects, from large to small.

    Outlines are kept as compressed run lengths in one flat array, which worker processes share: some 190 MB for COCO.

    Args:
        file: the annotations' JSON file.
        annotations: what was read of it.
        labels: (number of categories,) label by category, 0 for those that are left out.
        min_area: see `CocoSegmentation`.
        overlap: see `CocoSegmentation`.

    Raises:
        UserError: naming the annotation whose `segmentation` is no outline, or that no picture is left.
    """

    def __init__(
        self, file: Path, annotations: DetectionAnnotations, labels: np.ndarray, *, min_area: int, overlap: str
    ) -> None:
        self.file = file
        self.annotations = annotations
        self.overlap = overlap
        self.labels = labels[annotations.labels]  # by object
        content = json.loads(file.read_bytes())["annotations"]
        picture = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
        runs = []
        for position, number in enumerate(annotations.annotation_ids.tolist()):
            size = int(annotations.heights[picture[position]]), int(annotations.widths[picture[position]])
            used = self.labels[position] > 0
            runs.append(run_lengths(file, content[number - 1], size) if used else b"")
        self.ends = np.concatenate([[0], np.cumsum([len(run) for run in runs])]).astype(np.int64)
        self.runs = np.frombuffer(b"".join(runs), np.uint8)
        area = np.bincount(picture, np.where(self.labels > 0, annotations.area, 0), minlength=len(annotations))
        self.rows = np.flatnonzero(area >= min_area)
        if not len(self.rows):
            raise UserError(f"{file}: no picture has objects of data.min_area {min_area} pixels; lower it")
        self.image_files = annotations.image_files[self.rows]
        state = repr((annotations.fingerprint, labels.tolist(), min_area, overlap))
        self.fingerprint = hashlib.sha256(state.encode() + self.runs.tobytes()).hexdigest()[:16]

    def label(self, index: int) -> np.ndarray:
        """See the base class."""
        row = self.rows[index]
        these = slice(*self.annotations.offsets[row : row + 2])
        size = [int(self.annotations.heights[row]), int(self.annotations.widths[row])]
        result, covered = np.zeros(size, np.uint8), np.zeros(size, bool)
        found = []
        for position in range(these.start, these.stop):
            if self.labels[position]:
                counts = self.runs[self.ends[position] : self.ends[position + 1]].tobytes()
                mask = coco_mask.decode({"size": size, "counts": counts}).astype(bool)
                crowd = bool(self.annotations.iscrowd[position])
                found.append((not crowd, -int(mask.sum()), position, IGNORED if crowd else self.labels[position], mask))
        # Crowds lie behind their members that have outlines of their own; of equal objects the later is in front.
        for *_, label, mask in sorted(found, key=lambda entry: entry[:3]):
            result[mask] = label
            if self.overlap == "void":
                result[mask & covered] = IGNORED
                covered |= mask
        return result

    def label_name(self, index: int) -> str:
        """The file and the picture in it."""
        return f"{self.file}: image {self.annotations.image_ids[self.rows[index]]!r}"
