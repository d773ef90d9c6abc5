"""What the data modules of all tasks share: order, loaders that resume exactly, and checks of options."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningDataModule
from torch.utils.data import Dataset

from datamodules.loader import EpochBatches, ResumableLoader
from errors import UserError

SPLITS = ("train", "val", "test")


class ResumableDataModule(LightningDataModule):
    """Base class; a kind of data defines `name`, the abstract members, and `train_dataloader` by `_in_random_order`.

    Args:
        batch_size: samples per step and process.
        eval_batch_size: likewise for validation, test and prediction; None is `batch_size`.
        num_workers: processes that make batches; 0 makes them in the training process. Never changes what is made.
        shuffle: whether training samples come in a new order each epoch.
        seed: of all that is drawn.
    """

    name: str

    def __init__(
        self, *, batch_size: int, eval_batch_size: int | None, num_workers: int, shuffle: bool, seed: int
    ) -> None:
        super().__init__()
        self.check_positive(batch_size=batch_size, eval_batch_size=eval_batch_size)
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; it must be at least 0")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.seed = seed

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
        """Which of train, val and test there are."""

    @property
    @abstractmethod
    def collate(self) -> Callable[[list[Any]], dict[str, Any]]:
        """From samples to a batch."""

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """A split as samples of evaluation."""

    def check_split(self, split: str) -> None:
        """Raise a UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(f"the dataset {self.name} has no {split} split; it has {', '.join(self.splits)}")

    def val_dataloader(self) -> ResumableLoader | list:
        """The validation split in order, each sample once over all processes."""
        return self._evaluation("val")

    def test_dataloader(self) -> ResumableLoader | list:
        """The test split in order, each sample once over all processes."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> ResumableLoader | list:
        if split not in self.splits:
            return []
        dataset = self.dataset(split)
        return self._loader(dataset, self._in_order(dataset))

    def _in_order(self, dataset: Dataset) -> EpochBatches:
        return EpochBatches(length=len(dataset), batch_size=self.eval_batch_size, training=False, **self._place())

    def _in_random_order(self, dataset: Dataset) -> EpochBatches:
        trainer = self.trainer
        batches = self._training_batches(
            length=len(dataset),
            batch_size=self.batch_size,
            training=True,
            shuffle=self._shuffles and not self._overfits,
            seed=self.seed,
            limit=trainer.limit_train_batches if trainer else 1.0,
            **self._place(),
        )
        if trainer is not None:  # not 0 if Lightning asks for a new loader every few epochs
            batches.epoch = trainer.current_epoch
        return batches

    def _training_batches(self, **options: Any) -> EpochBatches:
        return EpochBatches(**options)

    def _loader(self, dataset: Dataset, batches: EpochBatches) -> ResumableLoader:
        return ResumableLoader(dataset, batches, collate=self.collate, num_workers=self.num_workers)

    @property
    def _shuffles(self) -> bool:
        return self.shuffle

    @property
    def _overfits(self) -> bool:
        return self.trainer is not None and self.trainer.overfit_batches > 0

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
