"""Pictures with predicted boxes while a detector trains."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule

from callbacks.visualisation import Visualisation, read_or_black
from visualisation.boxes import draw_boxes
from visualisation.figures import save_detection_figures
from visualisation.tide import tide_figure


class DetectionVisualisation(Visualisation):
    """Boxes; after a test the precision-recall curves, the confusion matrix, the F1 curve and the kinds of errors.

    The figures' numbers are in `figures/test_curves.json` and `figures/test_errors.json`.

    Args:
        num_images: see `Visualisation`, like `every_n_epochs`.
        score_threshold: least score of a box that is drawn.
        every_n_epochs: between pictures.
    """

    def __init__(self, num_images: int = 8, score_threshold: float = 0.3, every_n_epochs: int = 1) -> None:
        super().__init__(num_images, every_n_epochs)
        self.score_threshold = score_threshold

    def choose(self, data: Any, mine: np.ndarray) -> np.ndarray:
        """Those with objects first."""
        counts = np.diff(data.annotations("val").offsets)
        return mine[np.argsort(counts[mine] == 0, kind="stable")]

    def picture(self, data: Any, index: int) -> np.ndarray:
        """See the base class."""
        annotations = data.annotations("val")
        size = (int(annotations.heights[index]), int(annotations.widths[index]))
        return read_or_black(str(annotations.image_files[index]), size)

    def draw(self, data: Any, found: dict[str, Any], small: np.ndarray, factor: float, truth: bool) -> np.ndarray:
        """See the base class."""
        names = data.annotations("val").class_names
        if truth:
            objects = data.annotations("val").training_targets(found["index"])
            return draw_boxes(small, objects["boxes"] * factor, objects["labels"], names)
        boxes, labels, scores = self._confident(found)
        return draw_boxes(small, boxes * factor, labels, names, scores)

    def layers(self, data: Any, found: dict[str, Any], small: np.ndarray, factor: float) -> dict[str, Any]:
        """See the base class."""
        names = data.annotations("val").class_names
        objects = data.annotations("val").training_targets(found["index"])
        boxes, labels, scores = self._confident(found)
        return {
            "boxes": {
                "ground_truth": wandb_boxes(objects["boxes"] * factor, objects["labels"], names),
                "predictions": wandb_boxes(boxes * factor, labels, names, scores),
            }
        }

    def figures(self, pl_module: LightningModule, folder: Path) -> list[Path]:
        """See the base class."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test_curves.json").write_text(json.dumps(pl_module.test_curves) + "\n")
        (folder / "test_errors.json").write_text(json.dumps(pl_module.test_errors) + "\n")
        errors = folder / "errors.png"
        tide_figure(pl_module.test_errors).savefig(errors, dpi=120)
        return [*save_detection_figures(pl_module.test_curves, folder), errors]

    def _confident(self, found: dict[str, Any]) -> list[np.ndarray]:
        keep = found["scores"] >= self.score_threshold
        return [found[key][keep] for key in ("boxes", "labels", "scores")]


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
