"""What `train.py predict` leaves: pictures with boxes, and the boxes as COCO results."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from callbacks.prediction_folder import PredictionFolder, folder_of, of_all_processes
from datamodules.detection import DetectionDataModule
from datamodules.images import read_image
from errors import UserError
from visualisation.boxes import draw_boxes


class PredictionWriter(PredictionFolder):
    """Writes `predictions/` in the run directory.

    `<name>.jpg` are the pictures with boxes of at least `score_threshold`, named as the originals below their common
    folder; `results.json` holds all boxes in COCO's results format. A picture of the dataset has the id that it has in
    the annotation file (so that `tools.evaluate_detections` takes the results), any other one its name.

    Args:
        score_threshold: least score of a box that is drawn.
    """

    def __init__(self, score_threshold: float = 0.3) -> None:
        super().__init__()
        self.score_threshold = score_threshold
        self.names: list[str] = []  # by index
        self.results: dict[int, list[dict[str, Any]]] = {}  # by index

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the pictures."""
        self.names = picture_names(trainer.datamodule.predict_files)

    def keep(self, found: dict[str, Any], data: DetectionDataModule, folder: Path) -> None:
        """Draw the picture, and remember its boxes."""
        index = found["index"]
        confident = found["scores"] >= self.score_threshold
        drawn = draw_boxes(
            read_image(data.predict_files[index]),
            found["boxes"][confident],
            found["labels"][confident],
            data.class_names,
            found["scores"][confident],
        )
        target = folder / f"{self.names[index]}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(target, quality=92)
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        self.results[index] = [
            {
                "category_id": data.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in rows
        ]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect all processes' boxes in one file."""
        merged = of_all_processes(trainer, self.results)
        if trainer.is_global_zero:
            known = image_ids(trainer.datamodule)
            paths = [os.path.abspath(file) for file in trainer.datamodule.predict_files]
            results = [
                {"image_id": known.get(paths[index], self.names[index]), **row}
                for index, rows in merged.items()
                for row in rows
            ]
            file = folder_of(trainer) / "results.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results) + "\n")
            print(f"{len(merged)} pictures with boxes and results.json are in {file.parent}")
        self.results = {}


def picture_names(files: list[str]) -> list[str]:
    """A name for each file: its path below the folder that all share, without ending unless that is needed."""
    paths = [os.path.abspath(file) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, root) for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    uses = Counter([*stems, *names])  # a.png.jpg without its ending is the name of its neighbour a.png
    return [name if uses[stem] > 1 else stem for name, stem in zip(names, stems, strict=True)]


def image_ids(data: DetectionDataModule) -> dict[str, int | str]:
    """The ids of the dataset's pictures by absolute path, of those splits that are at hand."""
    known: dict[str, int | str] = {}
    for split in data.splits:
        try:
            annotations = data.annotations(split)
        except UserError:
            continue
        known.update(zip(map(os.path.abspath, annotations.image_files), annotations.image_ids, strict=True))
    return known
