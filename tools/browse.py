"""A contact sheet of what the network is fed: training samples after augmentation, with their boxes or masks.

    python -m tools.browse --config configs/efficientdet_d0.yaml [--split train] [--count 16] [--out browse.png]

All options of train.py hold: `--data.augmentation mosaic`, `--data configs/data/coco.yaml --data.root ...`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.cli import LightningArgumentParser

from datamodules.text.base import LanguageDataModule
from errors import UserError
from lightning_modules.cli import TriptychCLI
from tools.command import run_quietly, status_of
from visualisation.boxes import contact_sheet, draw_boxes
from visualisation.masks import draw_masks


class Browser(TriptychCLI):
    """Builds data and model as a training would, and draws samples in place of training."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of this tool beside train.py's."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--split", type=str, default="train", help="train (augmented), val or test")
        parser.add_argument("--count", type=int, default=16, help="number of samples")
        parser.add_argument("--out", type=str, default="browse.png", help="picture to write")

    def _run_subcommand(self, subcommand: str) -> None:
        options = self.config[subcommand]
        if options.count < 1:
            raise UserError(f"--count is {options.count}; it must be at least 1")
        if isinstance(self.datamodule, LanguageDataModule):
            raise UserError(f"{type(self.datamodule).__name__} has no pictures to draw: browse a dataset of pictures")
        dataset = self.datamodule.dataset(options.split, augmented=options.split == "train")
        sheet = [self._drawn(dataset[0, index]) for index in range(min(options.count, len(dataset)))]
        try:
            Image.fromarray(contact_sheet(sheet)).save(options.out)
        except (OSError, ValueError) as error:
            raise UserError(f"--out {options.out}: cannot be written ({error}); name a .png or .jpg file") from error
        print(f"{len(sheet)} samples of {self.datamodule.name}, {options.split} split: {Path(options.out).resolve()}")

    def _drawn(self, sample: dict[str, Any]) -> np.ndarray:
        data = self.datamodule
        image = np.ascontiguousarray(sample["image"].numpy().transpose(1, 2, 0))
        if "mask" in sample:
            return draw_masks(image, sample["mask"].numpy(), data.class_names, data.palette)
        return draw_boxes(image, sample["boxes"].numpy(), sample["labels"], data.class_names)


def main(args: list[str] | None = None) -> int:
    """Draw, and return the exit status: 2 for a user's mistake."""
    return status_of(lambda: Browser(args))


if __name__ == "__main__":
    run_quietly(main)
