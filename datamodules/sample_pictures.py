"""What data modules share whose pictures are drawn on first use."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from datamodules.locking import locked
from datamodules.picture_module import PictureDataModule
from datamodules.resumable_module import SPLITS
from errors import UserError


class SamplePictures(PictureDataModule):
    """Base class beside that of a task; a dataset defines `version` and `_generate`.

    Args:
        root: folder below which the data is kept.
        train_images: number of training pictures.
        val_images: likewise for validation; 0 for none.
        test_images: likewise for testing; 0 for none.
        picture_size: longer side of the pictures in pixels.
        picture_seed: of the pictures (not of their order or augmentation).
        **common: see the task's data module.
    """

    version: str  # of the pictures and the files that hold them

    def __init__(
        self,
        root: str,
        train_images: int = 400,
        val_images: int = 100,
        test_images: int = 100,
        picture_size: int = 160,
        picture_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.counts = {"train": train_images, "val": val_images, "test": test_images}
        self.picture_size = picture_size
        self.picture_seed = picture_seed
        counts = "_".join(str(count) for count in self.counts.values())
        self.folder = Path(root) / f"{picture_size}px_{counts}_seed{picture_seed}_{self.version}"

    @property
    def splits(self) -> list[str]:
        """The splits that have pictures."""
        return [split for split in SPLITS if self.counts[split] > 0]

    @abstractmethod
    def _generate(self) -> None:
        """Draw all splits into `folder`, which appears only when it is complete."""

    def _make(self) -> None:
        """Draw the pictures unless they are there."""
        try:
            with locked(self.folder):
                if not self.folder.exists():
                    self._generate()
        except OSError as error:
            raise UserError(
                f"{self.folder}: sample data cannot be written ({error.strerror}); name another folder with --data.root"
            ) from error
