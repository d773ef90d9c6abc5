"""Detect objects on pictures in one call."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.collate import collate_detection
from datamodules.dataset import picture_sample
from datamodules.recipes import RESIZES
from datamodules.selective_search import known_source
from inference.pictures import Picture, as_image
from lightning_modules.detection import in_original_pixels
from models.detection.detector import Detections, Detector
from models.detection.postprocessing.tta import TestTimeAugmentation, View
from visualisation.boxes import draw_boxes

PROPOSALS = ("proposals", "proposals_valid")  # what a batch has for detectors that need them


class DetectionResult:
    """What was found on one picture, by descending score.

    Attributes:
        image: (H, W, 3) uint8 RGB, the picture as given.
        boxes: (n, 4) float32 XYXY in its pixels.
        scores: (n,) float32.
        labels: (n,) int64, positions in the model's classes.
        class_names: per box the name of its class.
        category_ids: per box the id of its class in the annotation file that the model was trained with.
    """

    def __init__(
        self, image: np.ndarray, found: dict[str, np.ndarray], names: Sequence[str], ids: Sequence[int | str]
    ) -> None:
        self.image = image
        self.boxes, self.scores, self.labels = found["boxes"], found["scores"], found["labels"]
        self.class_names = [names[label] for label in self.labels]
        self.category_ids = [ids[label] for label in self.labels]
        self._all_names = names

    def draw(self) -> Image.Image:
        """The picture with its boxes."""
        return Image.fromarray(draw_boxes(self.image, self.boxes, self.labels, self._all_names, self.scores))

    def save(self, path: str | Path) -> None:
        """Write the picture with its boxes, in the format of the path's ending."""
        self.draw().save(path)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The boxes as COCO results, XYWH."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.category_ids, strict=True)
        return [
            {"image_id": image_id, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), score, category in rows
        ]

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        found = ", ".join(f"{n} {s:.2f}" for n, s in list(zip(self.class_names, self.scores, strict=True))[:5])
        return f"DetectionResult({len(self)} boxes{': ' if found else ''}{found}{', ...' if len(self) > 5 else ''})"

    def _repr_png_(self) -> bytes:  # shown by notebooks
        return self.draw()._repr_png_()


class DetectionPredictor:
    """A detector with its preprocessing; see `inference.load`.

    Args:
        network: in evaluation mode.
        data: the description of the data it was trained with: `class_names`, `category_ids`, `image_size`, and
            `proposals` where the detector needs them.
        score_threshold: boxes below it are dropped.
        batch_size: pictures per pass.
        test_time_augmentation: views to detect in, and how to fuse what is found; None: the picture as it is.
    """

    def __init__(
        self,
        network: Detector,
        data: dict[str, Any],
        score_threshold: float = 0.3,
        batch_size: int = 8,
        test_time_augmentation: TestTimeAugmentation | None = None,
    ) -> None:
        self.network = network
        self.class_names = list(data["class_names"])
        self.category_ids = list(data["category_ids"])
        self.image_size = data["image_size"] or network.image_size
        self.proposals = known_source(data["proposals"]) if "proposals" in data else None
        self.score_threshold = score_threshold
        self.resize = RESIZES[data.get("resize", "fit")]
        self.batch_size = batch_size
        self.test_time_augmentation = test_time_augmentation

    def __call__(self, pictures: Picture | Sequence[Picture]) -> DetectionResult | list[DetectionResult]:
        """Detect.

        Args:
            pictures: one or a list of: a path, an (H, W, 3) uint8 RGB array, a PIL image, a (3, H, W) uint8 tensor.
                Photographs with an orientation in their EXIF block are turned upright.

        Returns:
            One result, or a list of them for a list; boxes are in pixels of the (upright) picture.

        Raises:
            UserError: a file that cannot be read, or an array of another shape or type.
        """
        if isinstance(pictures, list | tuple):
            images = [as_image(picture) for picture in pictures]
            batches = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
            return [result for batch in batches for result in self._detect(batch)]
        return self._detect([as_image(pictures)])[0]

    @torch.inference_mode()
    def _detect(self, images: list[np.ndarray]) -> list[DetectionResult]:
        transform = partial(self.resize, side=self.image_size)
        samples = [picture_sample(i, image, transform, self.proposals) for i, image in enumerate(images)]
        batch = collate_detection(samples)
        device = self.network.mean.device
        on_device = {key: batch[key].to(device) for key in ("image", "image_size", *PROPOSALS) if key in batch}
        detections = {key: value.cpu() for key, value in self._in_all_views(on_device).items()}
        results = []
        for image, found in zip(images, in_original_pixels(detections, batch), strict=True):
            keep = found["scores"] >= self.score_threshold
            kept = {key: found[key][keep] for key in ("boxes", "scores", "labels")}
            results.append(DetectionResult(image, kept, self.class_names, self.category_ids))
        return results

    def _in_all_views(self, batch: dict[str, Tensor]) -> Detections:
        def detect(view: View | None, images: Tensor, sizes: Tensor) -> Detections:
            outputs = self.network(self.network.preprocess(images, sizes))
            if "proposals" in batch:
                boxes, valid = (batch[key] for key in PROPOSALS)
                outputs["proposals"] = view.boxes_to(boxes) if view else boxes, valid
            return self.network.detect(outputs, sizes)

        if self.test_time_augmentation is None:
            return detect(None, batch["image"], batch["image_size"])
        size_divisor = self.network.size_divisor
        return self.test_time_augmentation(detect, batch["image"], batch["image_size"], size_divisor)
