"""Segment pictures in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.segmentation.transforms import resize_short
from inference.pictures import Picture, as_image
from lightning_modules.segmentation import labels_at
from models.segmentation.inference import Inference, Whole
from models.segmentation.segmenter import Segmenter
from visualisation.masks import draw_masks, palette_image


class SegmentationResult:
    """The classes of a picture's pixels.

    Attributes:
        image: (H, W, 3) uint8 RGB, the picture as given.
        labels: (H, W) uint8, positions in `class_names`.
        class_names: of all classes.
        palette: (256, 3) uint8, a colour per class.
    """

    def __init__(self, image: np.ndarray, labels: np.ndarray, class_names: Sequence[str], palette: np.ndarray) -> None:
        self.image = image
        self.labels = labels
        self.class_names = class_names
        self.palette = palette

    @property
    def shares(self) -> dict[str, float]:
        """The share of the picture that each class covers, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.class_names))
        order = np.argsort(-counts, kind="stable")
        return {self.class_names[k]: counts[k] / self.labels.size for k in order if counts[k]}

    def draw(self) -> Image.Image:
        """The picture with its classes in colour."""
        return Image.fromarray(draw_masks(self.image, self.labels, self.class_names, self.palette))

    def save(self, path: str | Path) -> None:
        """Write the picture with its classes in colour, in the format of the path's ending."""
        self.draw().save(path)

    def save_mask(self, path: str | Path) -> None:
        """Write the labels as a palette PNG, as VOC's annotations are."""
        palette_image(self.labels, self.palette).save(path, format="PNG")

    def __repr__(self) -> str:
        return f"SegmentationResult({', '.join(f'{name} {share:.0%}' for name, share in self.shares.items())})"

    def _repr_png_(self) -> bytes:  # shown by notebooks
        return self.draw()._repr_png_()


class SegmentationPredictor:
    """A segmenter with its preprocessing; see `inference.load`.

    Args:
        network: in evaluation mode.
        data: the description of the data it was trained with: `class_names`, `palette`, `image_size`.
        inference: how pictures are taken; None is in one piece.
    """

    def __init__(self, network: Segmenter, data: dict[str, Any], inference: Inference | None = None) -> None:
        self.network = network
        self.class_names = list(data["class_names"])
        self.palette = np.array(data["palette"], np.uint8)
        self.image_size = data["image_size"]
        self.inference = inference or Whole()

    def __call__(self, pictures: Picture | Sequence[Picture]) -> SegmentationResult | list[SegmentationResult]:
        """Segment.

        Args:
            pictures: one or a list of: a path, an (H, W, 3) uint8 RGB array, a PIL image, a (3, H, W) uint8 tensor.
                Photographs with an orientation in their EXIF block are turned upright.

        Returns:
            One result, or a list of them for a list.

        Raises:
            UserError: a file that cannot be read, or an array of another shape or type.
        """
        if isinstance(pictures, list | tuple):
            return [self._segment(as_image(picture)) for picture in pictures]
        return self._segment(as_image(pictures))

    @torch.inference_mode()
    def _segment(self, image: np.ndarray) -> SegmentationResult:
        resized = resize_short(image, self.image_size)
        device = self.network.mean.device
        pixels = torch.from_numpy(resized.transpose(2, 0, 1)[None].copy()).to(device)
        size = torch.tensor([resized.shape[:2]], device=device)
        scores = self.inference(self.network, self.network.preprocess(pixels, size))
        labels = labels_at(scores[0], list(image.shape[:2]))
        return SegmentationResult(image, labels, self.class_names, self.palette)
