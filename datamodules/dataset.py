"""A detection dataset that is read by (epoch, index)."""

import logging
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.annotations import DetectionAnnotations
from datamodules.images import CorruptImageError, read_image
from datamodules.loader import SampleKey
from datamodules.randomness import sample_rng
from datamodules.transforms import Transformed

log = logging.getLogger(__name__)

# (dataset, index, random stream) -> the transformed sample, its labels and its crowd marks
Recipe = Callable[["DetectionDataset", int, np.random.Generator], tuple[Transformed, np.ndarray, np.ndarray]]


class DetectionDataset(Dataset):
    """Pictures with their objects, transformed.

    Args:
        annotations: of the split.
        recipe: how a sample is made; see `datamodules.recipes`.
        seed: of the random streams.
        keep_difficult: also learn VOC's difficult objects.
        on_bad_sample: what to do with a picture that cannot be decoded: `stop`, or `skip` it and take the next
            readable picture in its place, the same one on every process and in every epoch. Evaluation never skips:
            there a black picture of the right size stands in, so that its objects count as missed.
    """

    def __init__(
        self,
        annotations: DetectionAnnotations,
        recipe: Recipe,
        *,
        seed: int = 0,
        keep_difficult: bool = False,
        on_bad_sample: str = "stop",
        training: bool = False,
    ) -> None:
        self.annotations = annotations
        self.recipe = recipe
        self.seed = seed
        self.keep_difficult = keep_difficult
        self.on_bad_sample = on_bad_sample
        self.training = training
        self.quarantine: set[int] = set()

    def __len__(self) -> int:
        return len(self.annotations)

    def load(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The original picture (H, W, 3) uint8 and the objects to learn: boxes, labels, iscrowd."""
        a = self.annotations
        size = (int(a.heights[index]), int(a.widths[index]))
        try:
            image = read_image(str(a.image_files[index]), size)
        except CorruptImageError as error:
            if self.on_bad_sample != "skip":
                raise
            if index not in self.quarantine:
                log.warning("%s; left out", error)
                self.quarantine.add(index)
            if len(self.quarantine) == len(self):
                raise
            if self.training:
                return self.load((index + 1) % len(self))
            image = np.zeros((*size, 3), np.uint8)
        objects = a.training_targets(index)
        if not self.keep_difficult:
            keep = ~objects["difficult"]
            objects = {name: values[keep] for name, values in objects.items()}
        return image, objects

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample as `collate_detection` takes it."""
        epoch, index = key
        done, labels, iscrowd = self.recipe(self, index, sample_rng(self.seed, epoch, index))
        size = (int(self.annotations.heights[index]), int(self.annotations.widths[index]))
        return as_sample(index, done, size, labels, iscrowd)


class PictureDataset(Dataset):
    """Pictures without annotations, for prediction; the same samples as `DetectionDataset`, without objects."""

    def __init__(self, files: list[str], transform: Callable[[np.ndarray, np.ndarray], Transformed]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The picture, upright, transformed."""
        _, index = key
        image = read_image(self.files[index])
        return as_sample(index, self.transform(image, np.zeros((0, 4), np.float32)), image.shape[:2])


def as_sample(
    index: int,
    done: Transformed,
    original_size: tuple[int, int],
    labels: np.ndarray | None = None,
    iscrowd: np.ndarray | None = None,
) -> dict[str, Any]:
    """A sample as `collate_detection` takes it; without labels, a picture without objects."""
    boxes = torch.from_numpy(done.boxes)
    planes = np.empty((3, *done.image.shape[:2]), np.uint8)
    cv2.split(done.image, list(planes))  # into them: eight times as fast as a transposed copy
    return {
        "image": torch.from_numpy(planes),
        "image_size": done.size,
        "original_size": original_size,
        "scale": done.scale,
        "index": index,
        "boxes": boxes,
        "labels": torch.zeros(0, dtype=torch.int64) if labels is None else torch.from_numpy(labels),
        "iscrowd": torch.zeros(0, dtype=torch.bool) if iscrowd is None else torch.from_numpy(iscrowd),
        "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    }
