"""A detection dataset that is read by (epoch, index)."""

import fcntl
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.annotations import DetectionAnnotations
from datamodules.images import CorruptImageError, read_image
from datamodules.loader import SampleKey
from datamodules.multi_scale import SizedKey
from datamodules.proposals import PROPOSAL, ProposalSource, with_proposals
from datamodules.randomness import sample_rng
from datamodules.samples import Sample
from datamodules.transforms import Transformed
from errors import UserError

log = logging.getLogger(__name__)

# (dataset, index, random stream) -> the transformed sample, its labels and its crowd marks; takes `side` if sizes vary
Recipe = Callable[..., Sample]


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
        report: file that lists the skipped pictures, shared by all processes, so that each is warned of once.
        training: whether pictures may take each other's place.
        proposals: finds boxes that go through the recipe with the objects.
    """

    def __init__(
        self,
        annotations: DetectionAnnotations,
        recipe: Recipe,
        *,
        seed: int = 0,
        keep_difficult: bool = False,
        on_bad_sample: str = "stop",
        report: Path | None = None,
        training: bool = False,
        proposals: ProposalSource | None = None,
    ) -> None:
        self.annotations = annotations
        self.recipe = recipe
        self.seed = seed
        self.keep_difficult = keep_difficult
        self.on_bad_sample = on_bad_sample
        self.report = report
        self.training = training
        self.proposals = proposals
        self.quarantine: set[int] = set()

    def __len__(self) -> int:
        return len(self.annotations)

    def load(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The original picture (H, W, 3) uint8 and the objects to learn: boxes, labels, iscrowd, position.

        Raises:
            UserError: the picture cannot be read, or, if bad ones are skipped, no picture can.
        """
        for candidate in (*range(index, len(self)), *range(index)):
            image = self._read(candidate)
            if image is None and not self.training:
                image = np.zeros((*self._size(candidate), 3), np.uint8)
            if image is not None:
                objects = self._objects(candidate)
                if self.proposals is not None:
                    objects = with_proposals(objects, self.proposals.boxes(image))
                return image, objects
        raise UserError(
            f"{self.annotations.image_files[index]}: this picture and the {len(self) - 1} others of its split cannot "
            "be decoded; check the dataset"
        )

    def masks(self, objects: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """The masks (n, H, W) bool of what `load` returned.

        Args:
            objects: of a picture.
            size: its (height, width).

        Raises:
            UserError: the dataset has no outlines.
        """
        if self.annotations.outlines is None:
            raise UserError(
                "data.augmentation copy_paste needs outlines of the objects, which this dataset does not have: choose "
                "another augmentation, or data in COCO's format with segmentations"
            )
        return self.annotations.outlines.masks(objects["position"], size)

    def _read(self, index: int) -> np.ndarray | None:
        if index in self.quarantine:
            return None
        try:
            return read_image(str(self.annotations.image_files[index]), self._size(index))
        except CorruptImageError:
            if self.on_bad_sample != "skip":
                raise
            self.quarantine.add(index)
            if self._reported_first(index):
                instead = "the next picture takes its place" if self.training else "its objects count as missed"
                log.warning("%s: cannot be decoded; %s", self.annotations.image_files[index], instead)
            return None

    def _reported_first(self, index: int) -> bool:
        """Put a picture on the list; False if it is there, put by another worker, process or earlier run."""
        if self.report is None:
            return True
        path = str(self.annotations.image_files[index])
        self.report.parent.mkdir(parents=True, exist_ok=True)
        with open(self.report, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if path in file.read().splitlines():
                return False
            file.write(f"{path}\n")
        return True

    def _objects(self, index: int) -> dict[str, np.ndarray]:
        objects = self.annotations.training_targets(index)
        if self.keep_difficult:
            return objects
        keep = ~objects["difficult"]
        return {name: values[keep] for name, values in objects.items()}

    def _size(self, index: int) -> tuple[int, int]:
        return int(self.annotations.heights[index]), int(self.annotations.widths[index])

    def __getitem__(self, key: SampleKey | SizedKey) -> dict[str, Any]:
        """A sample as `collate_detection` takes it; where sizes vary, the key says the side of its batch."""
        epoch, index, *side = key
        options = {"side": side[0]} if side else {}
        done, labels, iscrowd = self.recipe(self, index, sample_rng(self.seed, epoch, index), **options)
        return as_sample(index, done, self._size(index), labels, iscrowd, proposals=self.proposals is not None)


class PictureDataset(Dataset):
    """Pictures without annotations, for prediction; the same samples as `DetectionDataset`, without objects."""

    def __init__(
        self,
        files: list[str],
        transform: Callable[[np.ndarray, np.ndarray], Transformed],
        proposals: ProposalSource | None = None,
    ) -> None:
        self.files = files
        self.transform = transform
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The picture, upright, transformed."""
        _, index = key
        return picture_sample(index, read_image(self.files[index]), self.transform, self.proposals)


def picture_sample(
    index: int,
    image: np.ndarray,
    transform: Callable[[np.ndarray, np.ndarray], Transformed],
    proposals: ProposalSource | None = None,
) -> dict[str, Any]:
    """A picture without objects, transformed, with the proposals that a detector may need."""
    boxes = np.zeros((0, 4), np.float32) if proposals is None else proposals.boxes(image)
    done = transform(image, boxes)
    marks = np.full(len(done.boxes), PROPOSAL, np.int64)
    return as_sample(index, done, image.shape[:2], marks, np.zeros(len(marks), bool), proposals=proposals is not None)


def as_sample(
    index: int,
    done: Transformed,
    original_size: tuple[int, int],
    labels: np.ndarray | None = None,
    iscrowd: np.ndarray | None = None,
    *,
    proposals: bool = False,
) -> dict[str, Any]:
    """A sample as `collate_detection` takes it; without labels, a picture without objects.

    Args:
        index: of the picture.
        done: the picture and the boxes of its objects.
        original_size: (height, width).
        labels: of the boxes; what has the label PROPOSAL is none of the objects.
        iscrowd: of the boxes.
        proposals: whether the sample has proposals.
    """
    boxes = torch.from_numpy(done.boxes)
    found = {}
    if proposals:
        objects = torch.from_numpy(labels != PROPOSAL)
        found = {"proposals": boxes[~objects]}
        boxes, labels, iscrowd = boxes[objects], labels[objects.numpy()], iscrowd[objects.numpy()]
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
        **found,
    }
