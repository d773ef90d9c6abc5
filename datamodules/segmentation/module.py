"""The data module of every segmentation dataset: splits, and what the data says of itself."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import albumentations as A
import numpy as np

from datamodules.picture_module import PictureDataModule
from datamodules.segmentation.collate import collate_segmentation
from datamodules.segmentation.dataset import SegmentationDataset, SegmentationPictures
from datamodules.segmentation.masks import voc_palette
from datamodules.segmentation.samples import SegmentationSamples
from datamodules.segmentation.transforms import (
    Recipe,
    TransformedPair,
    flipped,
    resize_short,
    scale_crop,
    whole,
)
from datamodules.transforms import Pixels
from errors import UserError

AUGMENTATIONS = ("none", "flip", "scale_crop")


class SegmentationDataModule(PictureDataModule):
    """Base class; a dataset defines `name`, `splits`, `class_names` and `_read`.

    Nothing is read before it is asked for: constructing a data module touches no file.

    Args:
        image_size: pixels that the shorter side of a picture is resized to; None leaves pictures as they are. In
            evaluation only the network sees it: masks are scored at the pictures' own size.
        crop_size: side of the squares that `scale_crop` cuts for training.
        scale: range of the random factor of `scale_crop`, on top of `image_size`.
        augmentation: `none`, `flip` or `scale_crop` (random size, random square, flip).
        transforms: albumentations that come before it and change colours only, as a list of `class_path` and
            `init_args`.
        size_divisor: batches are padded to multiples of it.
        **common: see `PictureDataModule`.
    """

    def __init__(
        self,
        *,
        image_size: int | None = None,
        crop_size: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        augmentation: Literal["none", "flip", "scale_crop"] = "scale_crop",
        transforms: list[dict[str, Any]] | None = None,
        size_divisor: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.check_positive(image_size=image_size, crop_size=crop_size, size_divisor=size_divisor)
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}; it must be two positive factors, the smaller first")
        if augmentation not in AUGMENTATIONS:
            raise UserError(f"data.augmentation is {augmentation!r}; choose one of {', '.join(AUGMENTATIONS)}")
        self.image_size = image_size
        self.crop_size = crop_size
        self.scale = (float(scale[0]), float(scale[1]))
        self.augmentation = augmentation
        self.pixels = Colours(transforms) if transforms else None
        self.size_divisor = size_divisor
        self._samples: dict[str, SegmentationSamples] = {}

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names by label, the background included where the dataset has one."""

    @abstractmethod
    def _read(self, split: str) -> SegmentationSamples:
        """List the pictures of a split; fetch or generate the dataset first if need be."""

    @property
    def palette(self) -> np.ndarray:
        """The colour of every label, (256, 3) uint8 RGB."""
        return voc_palette()

    @property
    def num_classes(self) -> int:
        """K, the background included; labels are 0..K-1, and 255 where pixels do not count."""
        return len(self.class_names)

    def samples(self, split: str) -> SegmentationSamples:
        """The pictures of a split with their masks, listed once.

        Raises:
            UserError: there is no such split, or it names what does not exist.
        """
        if split not in self._samples:
            self.check_split(split)
            self._samples[split] = self._read(split)
        return self._samples[split]

    def size(self, split: str) -> int:
        """Number of pictures in a split."""
        return len(self.samples(split))

    def label(self, split: str, index: int) -> np.ndarray:
        """The mask of a picture at its original size: (H, W) uint8, 255 for pixels that do not count."""
        return self.samples(split).label(index)

    def picture(self, split: str, index: int) -> np.ndarray:
        """A picture (H, W, 3) uint8 RGB at its original size; black if it cannot be decoded and is to be skipped."""
        return self.dataset(split, augmented=False).load(index)[0]

    @property
    def fingerprint(self) -> str:
        """A hash over the masks of all splits."""
        return "-".join(self.samples(split).fingerprint for split in self.splits)

    def description(self) -> dict[str, Any]:
        """What a checkpoint keeps of its data, in JSON types: enough to use the model without the dataset."""
        return {
            "task": "segmentation",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "class_names": self.class_names,
            "palette": self.palette.tolist(),
            "image_size": self.image_size,
        }

    @property
    def collate(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Stacked and padded."""
        return partial(collate_segmentation, size_divisor=self.size_divisor)

    def dataset(self, split: str, augmented: bool = False) -> SegmentationDataset:
        """A split as samples."""
        return SegmentationDataset(
            self.samples(split),
            self._recipe() if augmented else partial(whole, side=self.image_size),
            seed=self.seed,
            on_bad_sample=self.on_bad_sample,
            report=self.report,
            training=augmented,
        )

    def pictures(self, files: list[str]) -> SegmentationPictures:
        """Pictures to predict on, as samples."""
        return SegmentationPictures(files, partial(resize_short, side=self.image_size))

    def _recipe(self) -> Recipe:
        if self.augmentation == "scale_crop":
            if self.crop_size is None:
                raise UserError("data.augmentation scale_crop cuts pictures to data.crop_size: give one")
            geometry: Recipe = partial(scale_crop, side=self.image_size, crop=self.crop_size, scale_range=self.scale)
        else:
            geometry = partial(flipped if self.augmentation == "flip" else whole, side=self.image_size)
        return geometry if self.pixels is None else partial(_coloured, geometry=geometry, pixels=self.pixels)


class Colours(Pixels):
    """albumentations that leave every pixel where it is.

    Raises:
        UserError: a transform that moves pixels: the mask would have to move with them.
    """

    def __init__(self, transforms: list[Any]) -> None:
        super().__init__(transforms)
        waiting = list(self.compose.transforms)
        while waiting:
            transform = waiting.pop()
            if isinstance(transform, A.BaseCompose):
                waiting += transform.transforms
            elif not isinstance(transform, A.ImageOnlyTransform):
                raise UserError(
                    f"data.transforms: {type(transform).__name__} moves pixels, but only colours may be changed here; "
                    "geometry is the business of data.augmentation, data.scale and data.crop_size"
                )


def _coloured(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, geometry: Recipe, pixels: Colours
) -> TransformedPair:
    image, _, _ = pixels(image, np.zeros((0, 4), np.float32), rng)
    return geometry(image, labels, rng)
