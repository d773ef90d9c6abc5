"""The data module of every detection dataset: splits, loaders, and what the data says of itself."""

import glob
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import LightningDataModule

from datamodules.annotations import DetectionAnnotations
from datamodules.collate import collate_detection
from datamodules.dataset import DetectionDataset, PictureDataset, Recipe
from datamodules.loader import EpochBatches, ResumableLoader
from datamodules.multi_scale import MultiScaleBatches
from datamodules.proposals import ProposalSource
from datamodules.recipes import (
    ANY_SIZE,
    AUGMENTATIONS,
    CARRY_PROPOSALS,
    OUTLINED,
    RESIZES,
    STRETCHED,
    make_recipe,
    plain,
)
from datamodules.transforms import Pixels
from errors import UserError

SPLITS = ("train", "val", "test")
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


class DetectionDataModule(LightningDataModule):
    """Base class; a dataset defines `name`, `splits` and `_read`.

    Nothing is read before it is asked for: constructing a data module touches no file.

    Args:
        image_size: side in pixels of the square that pictures are fitted into; None is the network's published size.
        batch_size: pictures per step and process.
        eval_batch_size: likewise for validation, test and prediction; None is `batch_size`.
        num_workers: processes that read pictures; 0 reads in the training process. Never changes what is read.
        augmentation: `none`, `flip`, `efficientdet` (or `large_scale_jitter`: scale jitter .1 to 2, crop or pad, flip),
            `efficientdet_mild` (jitter .8 to 1.2), `ssd`, `yolo` (v3's), `yolo_crop` (v1's and v2's), `mosaic`, `mixup`
            or `copy_paste`; see `datamodules.recipes`.
        augmentation_options: numbers of the augmentation that differ from its defaults, such as `{jitter: 0.3}`.
        resize: at evaluation and prediction, and where the augmentation leaves it open: `fit` pictures into the square
            and pad the rest, or `stretch` them to it. None is what the augmentation's paper does: `stretch` for `ssd`
            and `yolo_crop`, else `fit`.
        training_sizes: train at these sizes in place of `image_size`: one is drawn for all pictures of a batch.
        size_every: batches that are trained at one size before another is drawn.
        transforms: albumentations that come before it, as a list of `class_path` and `init_args`.
        shuffle: whether training pictures come in a new order each epoch.
        keep_difficult: also learn objects that VOC marks as difficult.
        on_bad_sample: `stop` at a picture that cannot be decoded, or `skip` it with a warning and list it in
            `bad_samples.txt` in the run directory.
        images: for prediction: a picture, a folder or a glob pattern.
        proposals: finds the boxes that R-CNN, SPPNet and Fast R-CNN classify, such as `SelectiveSearch`; they are
            searched once, before the first epoch.
        seed: of order and augmentation; linked to `seed_everything`.
    """

    name: str

    def __init__(
        self,
        *,
        image_size: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        augmentation: str = "efficientdet",
        augmentation_options: dict[str, Any] | None = None,
        resize: Literal["fit", "stretch"] | None = None,
        training_sizes: list[int] | None = None,
        size_every: int = 10,
        transforms: list[dict[str, Any]] | None = None,
        shuffle: bool = True,
        keep_difficult: bool = False,
        on_bad_sample: Literal["stop", "skip"] = "stop",
        images: str | None = None,
        proposals: ProposalSource | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for option, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "image_size": image_size,
            "size_every": size_every,
            "training_sizes": min(training_sizes, default=0) if training_sizes is not None else None,
        }.items():
            if value is not None and value < 1:
                raise UserError(f"data.{option} is {value}; it must be at least 1")
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; it must be at least 0")
        if augmentation not in AUGMENTATIONS:
            raise UserError(f"data.augmentation is {augmentation!r}; choose one of {', '.join(AUGMENTATIONS)}")
        if proposals is not None and augmentation not in CARRY_PROPOSALS:
            raise UserError(
                f"data.augmentation is {augmentation!r}, which does not carry data.proposals along; choose one of "
                f"{', '.join(sorted(CARRY_PROPOSALS))}"
            )
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.augmentation = augmentation
        self.resize = resize or ("stretch" if augmentation in STRETCHED else "fit")
        self.make_sample = make_recipe(augmentation, augmentation_options or {}, resize=self.resize)
        self.training_sizes = training_sizes
        self.size_every = size_every
        self.pixels = Pixels(transforms) if transforms else None
        self.shuffle = shuffle
        self.keep_difficult = keep_difficult
        self.on_bad_sample = on_bad_sample
        self.images = images
        self.proposals = proposals
        self.seed = seed
        self._annotations: dict[str, DetectionAnnotations] = {}
        self._predict_files: list[str] | None = None

    def __str__(self) -> str:
        """Class and name; Lightning's own makes every loader to tell its length, and so reads the data."""
        return f"{type(self).__name__} {self.name}"

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """Which of train, val and test the dataset has."""

    @abstractmethod
    def _read(self, split: str) -> DetectionAnnotations:
        """Read the annotations of a split; fetch or generate the dataset first if need be."""

    def needs_outlines(self, split: str) -> bool:
        """Whether the masks of a split's objects are to be read, too."""
        return split == "train" and self.augmentation in OUTLINED

    def annotations(self, split: str) -> DetectionAnnotations:
        """The annotations of a split, read once.

        Raises:
            UserError: there is no such split, or it lists other categories than the training split.
        """
        if split not in self._annotations:
            if split not in self.splits:
                raise UserError(f"the dataset {self.name} has no {split} split; it has {', '.join(self.splits)}")
            read = self._read(split)
            first = next(iter(self._annotations.values()), read)
            if read.category_ids != first.category_ids or read.class_names != first.class_names:
                raise UserError(
                    f"the {split} split of {self.name} lists the categories {read.class_names}, another split lists "
                    f"{first.class_names}; all files of a dataset must list the same categories"
                )
            self._annotations[split] = read
        return self._annotations[split]

    def size(self, split: str) -> int:
        """Number of pictures in a split."""
        return len(self.annotations(split))

    def ground_truth(self, split: str) -> dict[str, Any]:
        """The objects of a split for a metric; see `DetectionAnnotations.ground_truth`."""
        return self.annotations(split).ground_truth()

    @property
    def class_names(self) -> list[str]:
        """Names by dense label."""
        return self.annotations(self.splits[0]).class_names

    @property
    def category_ids(self) -> list[int] | list[str]:
        """The annotation file's ids by dense label."""
        return self.annotations(self.splits[0]).category_ids

    @property
    def num_classes(self) -> int:
        """K, background not counted."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """A hash over the annotations of all splits."""
        return "-".join(self.annotations(split).fingerprint for split in self.splits)

    def description(self) -> dict[str, Any]:
        """What a checkpoint keeps of its data, in JSON types: enough to use the model without the dataset."""
        return {
            "task": "detection",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "class_names": self.class_names,
            "category_ids": self.category_ids,
            "image_size": self.image_size,
            "resize": self.resize,
            **({} if self.proposals is None else {"proposals": self.proposals.description()}),
        }

    def dataset(self, split: str, augmented: bool) -> DetectionDataset:
        """A split as samples."""
        recipe: Recipe = partial(plain, side=self.image_size, resize=self.resize)
        if augmented:
            if self.image_size is None and self.augmentation not in ANY_SIZE:
                raise UserError(f"data.augmentation {self.augmentation} cuts pictures to data.image_size: give one")
            recipe = partial(self.make_sample, side=self.image_size, pixels=self.pixels)
        annotations = self.annotations(split)
        if self.proposals is not None:
            sizes = list(zip(annotations.heights.tolist(), annotations.widths.tolist(), strict=True))
            self.proposals.prepare(annotations.image_files, sizes, annotations.fingerprint, **self._place())
        return DetectionDataset(
            annotations,
            recipe,
            seed=self.seed,
            keep_difficult=self.keep_difficult,
            on_bad_sample=self.on_bad_sample,
            report=Path(self.trainer.default_root_dir) / "bad_samples.txt" if self.trainer else None,
            training=augmented,
            proposals=self.proposals,
        )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented, resumable."""
        dataset = self.dataset("train", augmented=True)
        trainer = self.trainer
        overfit = trainer is not None and trainer.overfit_batches > 0
        options = {
            "length": len(dataset),
            "batch_size": self.batch_size,
            "training": True,
            "shuffle": self.shuffle and not overfit,
            "seed": self.seed,
            "limit": trainer.limit_train_batches if trainer else 1.0,
            **self._place(),
        }
        if self.training_sizes is None:
            batches = EpochBatches(**options)
        else:
            batches = MultiScaleBatches(sizes=self.training_sizes, every=self.size_every, **options)
        if trainer is not None:  # not 0 if Lightning asks for a new loader every few epochs
            batches.epoch = trainer.current_epoch
        return ResumableLoader(dataset, batches, collate=collate_detection, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader | list:
        """The validation split in order, each picture once over all processes."""
        return self._evaluation("val")

    def test_dataloader(self) -> ResumableLoader | list:
        """The test split in order, each picture once over all processes."""
        return self._evaluation("test")

    def predict_dataloader(self) -> ResumableLoader:
        """The pictures of `images` in order."""
        dataset = PictureDataset(
            self.predict_files, partial(RESIZES[self.resize], side=self.image_size), self.proposals
        )
        return self._ordered(dataset)

    @property
    def predict_files(self) -> list[str]:
        """The pictures to predict on, sorted.

        Raises:
            UserError: `images` is not given or finds none.
        """
        if self._predict_files is None:
            self._predict_files = find_pictures(self.images)
        return self._predict_files

    def _evaluation(self, split: str) -> ResumableLoader | list:
        if split not in self.splits:
            return []
        return self._ordered(self.dataset(split, augmented=False))

    def _ordered(self, dataset: DetectionDataset | PictureDataset) -> ResumableLoader:
        batches = EpochBatches(length=len(dataset), batch_size=self.eval_batch_size, training=False, **self._place())
        return ResumableLoader(dataset, batches, collate=collate_detection, num_workers=self.num_workers)

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}


def find_pictures(pattern: str | None) -> list[str]:
    """A picture, all pictures below a folder, or what a glob pattern finds; sorted.

    Raises:
        UserError: nothing given, or nothing found.
    """
    if not pattern:
        raise UserError("nothing to predict on: name a picture, a folder or a glob pattern with --data.images")
    path = Path(pattern)
    if path.is_dir():
        found = [str(p) for p in path.rglob("*") if p.suffix.lower() in PICTURES]
    else:
        found = [str(path)] if path.is_file() else [p for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]
    if not found:
        raise UserError(f"{pattern}: no pictures found; name a picture, a folder with pictures or a glob pattern")
    return sorted(found)
