"""A segmentation dataset that is read by (epoch, index)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.bad_samples import BadSamples
from datamodules.images import CorruptImageError, read_image
from datamodules.loader import SampleKey
from datamodules.randomness import sample_rng
from datamodules.segmentation.samples import SegmentationSamples
from datamodules.segmentation.transforms import Recipe
from errors import UserError


class SegmentationDataset(Dataset):
    """Pictures with their masks, transformed.

    Args:
        samples: of the split.
        recipe: how a sample is made; see `datamodules.segmentation.transforms`.
        seed: of the random streams.
        on_bad_sample: what to do with a picture that cannot be decoded: `stop`, or `skip` it and take the next
            readable one in its place, the same on every process and in every epoch. Evaluation never skips: there a
            black picture of the mask's size stands in, so that its pixels count; a mask that cannot be decoded stops.
        report: file that lists the skipped pictures, shared by all processes, so that each is warned of once.
        training: whether pictures may take each other's place; evaluation adds the mask at its original size.
    """

    def __init__(
        self,
        samples: SegmentationSamples,
        recipe: Recipe,
        *,
        seed: int = 0,
        on_bad_sample: str = "stop",
        report: Path | None = None,
        training: bool = False,
    ) -> None:
        self.samples = samples
        self.recipe = recipe
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self.training = training
        self.bad = BadSamples(report)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The original picture (H, W, 3) uint8 and its labels (H, W) uint8.

        Raises:
            UserError: either cannot be read, or they differ in size, or, if bad ones are skipped, no picture can.
        """
        if not self.training:
            return self._evaluated(index)
        for candidate in (*range(index, len(self)), *range(index)):
            if candidate in self.bad:
                continue
            try:
                label = self.samples.label(candidate)
                return self._picture(candidate, label.shape), label
            except CorruptImageError as error:
                self._pass_over(candidate, error, "the next picture takes its place")
        raise UserError(
            f"{self.samples.image_files[index]}: this picture and the {len(self) - 1} others of its split cannot "
            "be decoded; check the dataset"
        )

    def _evaluated(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        label = self.samples.label(index)
        if index not in self.bad:
            try:
                return self._picture(index, label.shape), label
            except CorruptImageError as error:
                self._pass_over(index, error, "a black picture takes its place")
        return np.zeros((*label.shape, 3), np.uint8), label

    def _pass_over(self, index: int, error: CorruptImageError, consequence: str) -> None:
        if self.on_bad_sample != "skip":
            raise error
        self.bad.add(index, str(self.samples.image_files[index]), consequence)

    def _picture(self, index: int, size: tuple[int, int]) -> np.ndarray:
        file = str(self.samples.image_files[index])
        try:
            return read_image(file, size)
        except CorruptImageError:
            raise
        except UserError as error:
            height, width = read_image(file).shape[:2]  # or raises again: the file is at fault, not the size
            raise UserError(
                f"{self.samples.label_name(index)}: the mask has {size[1]} x {size[0]} pixels, its picture {file} has "
                f"{width} x {height}; make the mask from that picture, at its size"
            ) from error

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample as `collate_segmentation` takes it."""
        epoch, index = key
        image, label = self.load(index)
        done = self.recipe(image, label, sample_rng(self.seed, epoch, index))
        sample = {
            "image": planes(done.image),
            "image_size": done.size,
            "original_size": label.shape,
            "index": index,
            "mask": torch.from_numpy(done.mask),
        }
        if not self.training:
            sample["label"] = torch.from_numpy(label)
        return sample


class SegmentationPictures(Dataset):
    """Pictures without masks, for prediction; the same samples as `SegmentationDataset`, without masks."""

    def __init__(self, files: list[str], transform: Callable[[np.ndarray], np.ndarray]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The picture, upright, transformed."""
        _, index = key
        image = read_image(self.files[index])
        done = self.transform(image)
        return {
            "image": planes(done),
            "image_size": done.shape[:2],
            "original_size": image.shape[:2],
            "index": index,
        }


def planes(image: np.ndarray) -> Tensor:
    """A picture (H, W, 3) as a tensor (3, H, W)."""
    result = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(result))  # into them: eight times as fast as a transposed copy
    return torch.from_numpy(result)
