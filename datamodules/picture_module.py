"""What the data modules of all tasks on pictures share: options, order and loaders."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import LightningDataModule
from torch.utils.data import Dataset

from datamodules.detection import find_pictures
from datamodules.loader import EpochBatches, ResumableLoader
from errors import UserError


class PictureDataModule(LightningDataModule):
    """Base class; a task defines the abstract members.

    Args:
        batch_size: pictures per step and process.
        eval_batch_size: likewise for validation, test and prediction; None is `batch_size`.
        num_workers: processes that read pictures; 0 reads in the training process. Never changes what is read.
        shuffle: whether training pictures come in a new order each epoch.
        on_bad_sample: `stop` at a picture that cannot be decoded, or `skip` it with a warning and list it in
            `bad_samples.txt` in the run directory.
        images: for prediction: a picture, a folder or a glob pattern.
        seed: of order and augmentation; linked to `seed_everything`.
    """

    name: str

    def __init__(
        self,
        *,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        shuffle: bool = True,
        on_bad_sample: Literal["stop", "skip"] = "stop",
        images: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.check_positive(batch_size=batch_size, eval_batch_size=eval_batch_size)
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; it must be at least 0")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.on_bad_sample = on_bad_sample
        self.images = images
        self.seed = seed
        self._predict_files: list[str] | None = None

    def __str__(self) -> str:
        """Class and name; Lightning's own makes every loader to tell its length, and so reads the data."""
        return f"{type(self).__name__} {self.name}"

    @staticmethod
    def check_positive(**options: int | None) -> None:
        """Refuse options below 1; None passes."""
        for option, value in options.items():
            if value is not None and value < 1:
                raise UserError(f"data.{option} is {value}; it must be at least 1")

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """Which of train, val and test the dataset has."""

    @property
    @abstractmethod
    def collate(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """From samples to a batch."""

    @abstractmethod
    def dataset(self, split: str, augmented: bool) -> Dataset:
        """A split as samples."""

    @abstractmethod
    def pictures(self, files: list[str]) -> Dataset:
        """Pictures to predict on, as samples."""

    def check_split(self, split: str) -> None:
        """Raise a UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(f"the dataset {self.name} has no {split} split; it has {', '.join(self.splits)}")

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented, resumable."""
        dataset = self.dataset("train", augmented=True)
        trainer = self.trainer
        overfit = trainer is not None and trainer.overfit_batches > 0
        batches = EpochBatches(
            length=len(dataset),
            batch_size=self.batch_size,
            training=True,
            shuffle=self.shuffle and not overfit,
            seed=self.seed,
            limit=trainer.limit_train_batches if trainer else 1.0,
            **self._place(),
        )
        if trainer is not None:  # not 0 if Lightning asks for a new loader every few epochs
            batches.epoch = trainer.current_epoch
        return ResumableLoader(dataset, batches, collate=self.collate, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader | list:
        """The validation split in order, each picture once over all processes."""
        return self._evaluation("val")

    def test_dataloader(self) -> ResumableLoader | list:
        """The test split in order, each picture once over all processes."""
        return self._evaluation("test")

    def predict_dataloader(self) -> ResumableLoader:
        """The pictures of `images` in order."""
        return self._ordered(self.pictures(self.predict_files))

    @property
    def predict_files(self) -> list[str]:
        """The pictures to predict on, sorted.

        Raises:
            UserError: `images` is not given or finds none.
        """
        if self._predict_files is None:
            self._predict_files = find_pictures(self.images)
        return self._predict_files

    @property
    def report(self) -> Path | None:
        """The file that lists skipped pictures, in the run directory."""
        return Path(self.trainer.default_root_dir) / "bad_samples.txt" if self.trainer else None

    def _evaluation(self, split: str) -> ResumableLoader | list:
        if split not in self.splits:
            return []
        return self._ordered(self.dataset(split, augmented=False))

    def _ordered(self, dataset: Dataset) -> ResumableLoader:
        batches = EpochBatches(length=len(dataset), batch_size=self.eval_batch_size, training=False, **self._place())
        return ResumableLoader(dataset, batches, collate=self.collate, num_workers=self.num_workers)

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
