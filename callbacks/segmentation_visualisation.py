"""Pictures with predicted masks while a segmenter trains."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import LightningModule

from callbacks.visualisation import Visualisation
from visualisation.masks import draw_masks
from visualisation.segmentation_figures import save_segmentation_figures


class SegmentationVisualisation(Visualisation):
    """Masks; after a test the IoU per class and the confusion matrix.

    Args:
        num_images: see `Visualisation`, like `every_n_epochs`.
        every_n_epochs: between pictures.
    """

    def choose(self, data: Any, mine: np.ndarray) -> np.ndarray:
        """Evenly spread over the dataset: neighbours in it may be frames of one video."""
        return mine[np.linspace(0, len(mine) - 1, min(self.num_images, len(mine))).round().astype(int)]

    def picture(self, data: Any, index: int) -> np.ndarray:
        """See the base class."""
        return data.picture("val", index)

    def draw(self, data: Any, found: dict[str, Any], small: np.ndarray, factor: float, truth: bool) -> np.ndarray:
        """See the base class."""
        labels = data.label("val", found["index"]) if truth else found["labels"]
        return draw_masks(small, _resized(labels, small), data.class_names, data.palette)

    def layers(self, data: Any, found: dict[str, Any], small: np.ndarray, factor: float) -> dict[str, Any]:
        """See the base class."""
        names = {**dict(enumerate(data.class_names)), 255: "void"}
        masks = {"ground_truth": data.label("val", found["index"]), "predictions": found["labels"]}
        return {
            "masks": {
                key: {"mask_data": _resized(labels, small), "class_labels": names} for key, labels in masks.items()
            }
        }

    def figures(self, pl_module: LightningModule, folder: Path) -> list[Path]:
        """See the base class."""
        metric = pl_module.metrics["test"]["segmentation"]
        return save_segmentation_figures(pl_module.results["test"], metric.confusion, metric.class_names, folder)


def _resized(labels: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Labels at the size of a picture."""
    size = picture.shape[1::-1]
    return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
