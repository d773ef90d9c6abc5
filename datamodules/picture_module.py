"""What the data modules of all tasks on pictures share: options, and the pictures to predict on."""

import glob
from abc import abstractmethod
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from datamodules.loader import ResumableLoader
from datamodules.resumable_module import ResumableDataModule
from errors import UserError

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


class PictureDataModule(ResumableDataModule):
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
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            shuffle=shuffle,
            seed=seed,
        )
        self.on_bad_sample = on_bad_sample
        self.images = images
        self._predict_files: list[str] | None = None

    @abstractmethod
    def dataset(self, split: str, augmented: bool = False) -> Dataset:
        """A split as samples."""

    @abstractmethod
    def pictures(self, files: list[str]) -> Dataset:
        """Pictures to predict on, as samples."""

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented, resumable."""
        dataset = self.dataset("train", augmented=True)
        return self._loader(dataset, self._in_random_order(dataset))

    def predict_dataloader(self) -> ResumableLoader:
        """The pictures of `images` in order."""
        dataset = self.pictures(self.predict_files)
        return self._loader(dataset, self._in_order(dataset))

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
