"""What `train.py predict` leaves of a segmenter: masks as palette PNG files, and pictures with their masks."""

from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from callbacks.prediction_folder import PredictionFolder, folder_of
from callbacks.prediction_writer import picture_names
from datamodules.images import read_image
from visualisation.masks import draw_masks, palette_image


class MaskWriter(PredictionFolder):
    """Writes `predictions/masks/<name>.png`, of mode P and the picture's size, and `predictions/<name>.jpg`.

    The names are those of the originals below their common folder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []  # by index

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the pictures."""
        self.names = picture_names(trainer.datamodule.predict_files)

    def keep(self, found: dict[str, Any], data: Any, folder: Path) -> None:
        """Write the mask, and draw the picture with it."""
        name = self.names[found["index"]]
        mask, drawn = folder / "masks" / f"{name}.png", folder / f"{name}.jpg"
        for path in (mask, drawn):
            path.parent.mkdir(parents=True, exist_ok=True)
        palette_image(found["labels"], data.palette).save(mask)
        picture = read_image(data.predict_files[found["index"]])
        picture = draw_masks(picture, found["labels"], data.class_names, data.palette)
        Image.fromarray(picture).save(drawn, quality=92)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where they are."""
        if trainer.is_global_zero:
            print(f"{len(self.names)} masks are in {folder_of(trainer)}")
