"""Pictures with predicted boxes while a detector trains."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.loggers import SafeWandbLogger, wandb_boxes
from datamodules.images import read_image
from visualisation.boxes import caption, contact_sheet, draw_boxes
from visualisation.figures import save_detection_figures


class DetectionVisualisation(Callback):
    """Ground truth beside predictions, for the same pictures after each validation; figures after the test.

    No extra pass of the network: the detections of the validation are shown. Where there are several processes, those
    pictures are shown that rank 0 evaluates.

    Pictures go to `images/val_epoch_<n>.png` in the run directory (`val.png` where a checkpoint is validated), to W&B
    with boxes to switch on and off, and to TensorBoard. After a test the precision-recall curves, the confusion matrix
    and the F1 curve go to `figures/`, with their numbers in `figures/test_curves.json`.

    Args:
        num_images: pictures to show; the first ones of the split that have objects.
        score_threshold: least score of a box that is drawn.
    """

    def __init__(self, num_images: int = 8, score_threshold: float = 0.3) -> None:
        self.num_images = num_images
        self.score_threshold = score_threshold
        self.shown: dict[int, dict[str, np.ndarray]] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the pictures."""
        self.shown = {}
        annotations = trainer.datamodule.annotations("val")
        counts = np.diff(annotations.offsets)
        mine = np.arange(trainer.global_rank, len(annotations), trainer.world_size)
        self.wanted = set(mine[np.argsort(counts[mine] == 0, kind="stable")][: self.num_images].tolist())

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the detections of the chosen pictures."""
        for found in pl_module.last_detections:
            if found["index"] in self.wanted:
                self.shown[found["index"]] = found

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if trainer.sanity_checking or not trainer.is_global_zero or not self.shown:
            return
        annotations = trainer.datamodule.annotations("val")
        names = annotations.class_names
        sheet, pictures = [], []
        for index, found in sorted(self.shown.items()):
            size = (int(annotations.heights[index]), int(annotations.widths[index]))
            image = read_image(str(annotations.image_files[index]), size)
            truth = annotations.training_targets(index)
            keep = found["scores"] >= self.score_threshold
            boxes, labels, scores = (found[key][keep] for key in ("boxes", "labels", "scores"))
            sheet.append(caption(draw_boxes(image, truth["boxes"], truth["labels"], names), "ground truth"))
            sheet.append(caption(draw_boxes(image, boxes, labels, names, scores), "prediction"))
            pictures.append(
                {
                    "image": image,
                    "boxes": {
                        "ground_truth": wandb_boxes(truth["boxes"], truth["labels"], names),
                        "predictions": wandb_boxes(boxes, labels, names, scores),
                    },
                }
            )
        drawn = contact_sheet(sheet)
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
        """Draw the curves of the test."""
        curves = pl_module.test_curves
        if curves is None:  # not rank 0
            return
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test_curves.json").write_text(json.dumps(curves) + "\n")
        figures = save_detection_figures(curves, folder)
        for logger in trainer.loggers:
            for file in figures:
                image = np.asarray(Image.open(file).convert("RGB"))
                if isinstance(logger, SafeWandbLogger):
                    logger.log_pictures(f"test/{file.stem}", [{"image": image}], trainer.global_step)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"test/{file.stem}", image, trainer.global_step, dataformats="HWC")
