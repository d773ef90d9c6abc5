"""Pictures with predicted boxes while a detector trains."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.loggers import SafeWandbLogger
from datamodules.images import CorruptImageError, read_image
from visualisation.boxes import caption, contact_sheet, draw_boxes
from visualisation.figures import save_detection_figures

# Longer side of a picture in pixels:
CELL = 480  # on the sheet
UPLOADED = 1024  # at most, in W&B


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
        every_n_epochs: draw after the validations of every n-th epoch only.
    """

    def __init__(self, num_images: int = 8, score_threshold: float = 0.3, every_n_epochs: int = 1) -> None:
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.score_threshold = score_threshold
        self.wanted: set[int] = set()  # indices
        self.shown: dict[int, dict[str, np.ndarray]] = {}  # their detections

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the pictures."""
        self.shown, self.wanted = {}, set()
        training = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (training and (trainer.current_epoch + 1) % self.every_n_epochs):
            return
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
        if not trainer.is_global_zero or not self.shown:
            return
        annotations = trainer.datamodule.annotations("val")
        names = annotations.class_names
        sheet, pictures = [], []
        for index, found in sorted(self.shown.items()):
            size = (int(annotations.heights[index]), int(annotations.widths[index]))
            try:
                image = read_image(str(annotations.image_files[index]), size)
            except CorruptImageError:  # skipped, if the validation came to its end: it was black there, too
                image = np.zeros((*size, 3), np.uint8)
            truth = annotations.training_targets(index)
            keep = found["scores"] >= self.score_threshold
            boxes, labels, scores = (found[key][keep] for key in ("boxes", "labels", "scores"))
            # Reduced before drawing, so that the words keep their size.
            small, factor = reduced(image, CELL)
            drawn = draw_boxes(small, truth["boxes"] * factor, truth["labels"], names)
            sheet.append(caption(drawn, "ground truth"))
            drawn = draw_boxes(small, boxes * factor, labels, names, scores)
            sheet.append(caption(drawn, "prediction"))
            small, factor = reduced(image, UPLOADED)
            pictures.append(
                {
                    "image": small,
                    "boxes": {
                        "ground_truth": wandb_boxes(truth["boxes"] * factor, truth["labels"], names),
                        "predictions": wandb_boxes(boxes * factor, labels, names, scores),
                    },
                }
            )
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


def reduced(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """A picture (H, W, 3) uint8 with sides of at most `longest` pixels, and the factor that it was resized by."""
    factor = min(longest / max(image.shape), 1.0)
    if factor == 1:
        return image, 1.0
    size = [max(round(side * factor), 1) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)), factor


def wandb_boxes(
    boxes: np.ndarray, labels: np.ndarray, class_names: list[str], scores: np.ndarray | None = None
) -> dict[str, Any]:
    """Boxes (n, 4) XYXY in pixels as one entry of `wandb.Image(boxes=...)`."""
    entries = []
    for i, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        entry = {
            "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
            "domain": "pixel",
            "class_id": label,
            "box_caption": class_names[label],
        }
        if scores is not None and math.isfinite(scores[i]):
            entry["scores"] = {"score": float(scores[i])}
            entry["box_caption"] += f" {scores[i]:.2f}"
        entries.append(entry)
    return {"box_data": entries, "class_labels": dict(enumerate(class_names))}
