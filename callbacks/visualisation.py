"""Pictures while a network trains: truth beside prediction."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.loggers import SafeWandbLogger
from datamodules.images import CorruptImageError, read_image
from visualisation.boxes import caption, contact_sheet

# Longer side of a picture in pixels:
CELL = 480  # on the sheet
UPLOADED = 1024  # at most, in W&B


class Visualisation(Callback):
    """Ground truth beside predictions, for the same pictures after each validation; figures after the test.

    No extra pass of the network: the predictions of the validation are shown. Where there are several processes, those
    pictures are shown that rank 0 evaluates.

    Pictures go to `images/val_epoch_<n>.png` in the run directory (`val.png` where a checkpoint is validated), to W&B
    with layers to switch on and off, and to TensorBoard. After a test figures go to `figures/`.

    Args:
        num_images: pictures to show; the first ones of the split that have objects.
        every_n_epochs: draw after the validations of every n-th epoch only.
    """

    def __init__(self, num_images: int = 8, every_n_epochs: int = 1) -> None:
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.wanted: set[int] = set()  # indices
        self.shown: dict[int, dict[str, Any]] = {}  # their predictions

    @abstractmethod
    def choose(self, data: Any, mine: np.ndarray) -> np.ndarray:
        """The indices `mine` of the validation split, those to show first."""

    @abstractmethod
    def picture(self, data: Any, index: int) -> np.ndarray:
        """A picture of the validation split, (H, W, 3) uint8."""

    @abstractmethod
    def draw(self, data: Any, found: dict[str, Any], small: np.ndarray, factor: float, truth: bool) -> np.ndarray:
        """Truth or prediction on a picture that was resized by `factor`."""

    @abstractmethod
    def layers(self, data: Any, found: dict[str, Any], small: np.ndarray, factor: float) -> dict[str, Any]:
        """Truth and prediction as `wandb.Image` takes them."""

    @abstractmethod
    def figures(self, pl_module: LightningModule, folder: Path) -> list[Path]:
        """Write the figures of a test; called on all processes, draws on rank 0 only."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the pictures."""
        self.shown, self.wanted = {}, set()
        training = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (training and (trainer.current_epoch + 1) % self.every_n_epochs):
            return
        data = trainer.datamodule
        mine = np.arange(trainer.global_rank, data.size("val"), trainer.world_size)
        self.wanted = set(self.choose(data, mine)[: self.num_images].tolist())

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predictions for the chosen pictures."""
        for found in pl_module.last_predictions:
            if found["index"] in self.wanted:
                self.shown[found["index"]] = found

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if not trainer.is_global_zero or not self.shown:
            return
        data = trainer.datamodule
        sheet, pictures = [], []
        for index, found in sorted(self.shown.items()):
            image = self.picture(data, index)
            # Reduced before drawing, so that the words keep their size.
            small, factor = reduced(image, CELL)
            sheet.append(caption(self.draw(data, found, small, factor, truth=True), "ground truth"))
            sheet.append(caption(self.draw(data, found, small, factor, truth=False), "prediction"))
            small, factor = reduced(image, UPLOADED)
            pictures.append({"image": small, **self.layers(data, found, small, factor)})
        drawn = contact_sheet(sheet, cell=CELL)
        folder = Path(trainer.default_root_dir) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"val_epoch_{trainer.current_epoch:04d}" if trainer.state.fn == TrainerFn.FITTING else "val"
        Image.fromarray(drawn).save(folder / f"{name}.png")
        for logger in trainer.loggers:
            if isinstance(logger, SafeWandbLogger):
                logger.log_pictures("val/pictures", pictures, trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/pictures", drawn, trainer.global_step, dataformats="HWC")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures of the test."""
        folder = Path(trainer.default_root_dir) / "figures"
        for file in self.figures(pl_module, folder) if trainer.is_global_zero else []:
            image = np.asarray(Image.open(file).convert("RGB"))
            for logger in trainer.loggers:
                if isinstance(logger, SafeWandbLogger):
                    logger.log_pictures(f"test/{file.stem}", [{"image": image}], trainer.global_step)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"test/{file.stem}", image, trainer.global_step, dataformats="HWC")


def read_or_black(path: str, size: tuple[int, int]) -> np.ndarray:
    """A picture; black if it cannot be read and was skipped, as it was in the validation."""
    try:
        return read_image(path, size)
    except CorruptImageError:
        return np.zeros((*size, 3), np.uint8)


def reduced(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """A picture (H, W, 3) uint8 with sides of at most `longest` pixels, and the factor that it was resized by."""
    factor = min(longest / max(image.shape), 1.0)
    if factor == 1:
        return image, 1.0
    size = [max(round(side * factor), 1) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)), factor
