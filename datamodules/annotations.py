"""The objects of a dataset in a few flat arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.outlines import Outlines


@dataclass
class DetectionAnnotations:
    """N images with M objects of K classes.

    Flat arrays, not a list of dictionaries: worker processes share them without copying (reading a Python object
    changes its reference count, and so its memory page), and COCO's 860,001 boxes fit into some 110 MB.

    Attributes:
        image_files: (N,) numpy strings, absolute paths; the objects of image i are `offsets[i]:offsets[i + 1]`.
        image_ids: as in the annotation file, numbers or strings.
        heights: (N,) int32, pixels.
        widths: (N,) int32, pixels.
        offsets: (N + 1,) int64.
        boxes: (M, 4) float64 XYWH pixels, as in the file: not clipped, not cleaned.
        labels: (M,) int64, 0..K-1.
        area: (M,) float64, square pixels.
        iscrowd: (M,) bool.
        difficult: (M,) bool, VOC's mark of objects that do not count.
        annotation_ids: (M,) int64.
        class_names: of the dense labels, by position.
        category_ids: of the annotation file, by position.
        fingerprint: hash of all of the above but the paths' folders.
        outlines: the objects' masks, if they were asked for.
    """

    image_files: np.ndarray
    image_ids: list[int] | list[str]
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray
    annotation_ids: np.ndarray
    class_names: list[str]
    category_ids: list[int] | list[str]
    fingerprint: str = ""
    outlines: Outlines | None = None

    def __post_init__(self) -> None:
        digest = hashlib.sha256(repr((self.class_names, self.category_ids, self.image_ids)).encode())
        for array in (self.heights, self.widths, self.offsets, self.boxes, self.labels, self.area, self.iscrowd):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(self.difficult.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.image_files)

    @classmethod
    def from_lists(
        cls,
        *,
        images: Sequence[tuple[str, int | str, int, int]],
        image_index: Sequence[int],
        objects: dict[str, Sequence[Any]],
        class_names: Sequence[str],
        category_ids: Sequence[int | str],
    ) -> "DetectionAnnotations":
        """Sort objects by image and lay everything out flat.

        Args:
            images: per image (path, id, height, width).
            image_index: per object the position of its image.
            objects: per object `boxes` (4 numbers), `labels`, `area`, `iscrowd`, `difficult`, `annotation_ids`, and
                maybe `outlines`, compressed run lengths.
            class_names: see the class.
            category_ids: see the class.
        """
        index = np.asarray(image_index, dtype=np.int64)
        order = np.argsort(index, kind="stable")
        counts = np.bincount(index, minlength=len(images))

        def column(name: str, dtype: Any) -> np.ndarray:
            return np.asarray(objects[name], dtype=dtype)[order]

        return cls(
            image_files=np.array([image[0] for image in images], dtype=np.str_),
            image_ids=[image[1] for image in images],
            heights=np.array([image[2] for image in images], dtype=np.int32),
            widths=np.array([image[3] for image in images], dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=np.asarray(objects["boxes"], dtype=np.float64).reshape(-1, 4)[order],
            labels=column("labels", np.int64),
            area=column("area", np.float64),
            iscrowd=column("iscrowd", bool),
            difficult=column("difficult", bool),
            annotation_ids=column("annotation_ids", np.int64),
            class_names=list(class_names),
            category_ids=list(category_ids),
            outlines=Outlines.from_list([objects["outlines"][i] for i in order]) if "outlines" in objects else None,
        )

    def ground_truth(self) -> dict[str, Any]:
        """What a metric needs, as a plain dictionary: per image ids and sizes, per object its image and the rest."""
        return {
            "image_ids": self.image_ids,
            "image_index": np.repeat(np.arange(len(self)), np.diff(self.offsets)),
            "boxes": self.boxes,
            "labels": self.labels,
            "area": self.area,
            "iscrowd": self.iscrowd,
            "difficult": self.difficult,
            "annotation_ids": self.annotation_ids,
            "heights": self.heights,
            "widths": self.widths,
            "class_names": self.class_names,
            "category_ids": self.category_ids,
        }

    def training_targets(self, index: int) -> dict[str, np.ndarray]:
        """The objects of image `index` as a network learns them: XYXY, clipped to the image, empty boxes dropped.

        Returns:
            `boxes` (n, 4) float32 XYXY, `labels` (n,) int64, `iscrowd` (n,) bool, `difficult` (n,) bool, and
            `position` (n,) int64, where they are in the flat arrays.
        """
        these = slice(self.offsets[index], self.offsets[index + 1])
        boxes = self.boxes[these].copy()
        boxes[:, 2:] += boxes[:, :2]
        width, height = self.widths[index], self.heights[index]
        boxes = np.clip(boxes, 0, [width, height, width, height])
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return {
            "boxes": boxes[keep].astype(np.float32),
            "labels": self.labels[these][keep],
            "iscrowd": self.iscrowd[these][keep],
            "difficult": self.difficult[these][keep],
            "position": these.start + np.flatnonzero(keep),
        }
