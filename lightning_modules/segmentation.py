"""Train and evaluate any semantic segmenter."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.base import TaskModule
from lightning_modules.schedules import Schedule
from metrics.exact import ExactMetric
from metrics.loss import DatasetLoss
from metrics.segmentation import SegmentationMetric
from models.segmentation.inference import Inference, Whole
from models.segmentation.segmenter import Segmenter
from models.segmentation.weights import load_weights


class SegmentationModule(TaskModule):
    """Trains a `Segmenter`; validation yields the losses at the network's size and mIoU at the pictures' own.

    A batch has `image` (B, 3, H, W) uint8, `mask` (B, H, W) with 255 for pixels that count nowhere, `image_size` and
    `original_size` (B, 2) int64 (height, width), `index` (B,), and in evaluation `label`, per picture the mask
    (h, w) uint8 at its original size.

    In evaluation pictures are cropped to their own size before they pass the network, so that what they are batched
    with changes nothing.

    Args:
        network: the segmenter.
        optimizer: see `TaskModule`, like `schedule`, `reference_batch_size`, `clip_each_tensor`, `channels_last`,
            `compile` and `lr_factors`.
        weights: file or URL of weights to start from: a segmentation checkpoint of torchvision, or one of Triptych,
            such as FCN-32s's for FCN-16s.
        inference: how pictures are evaluated and predicted; None takes them in one piece.
        boundary: also compute boundary IoU.
    """

    def __init__(
        self,
        network: Segmenter,
        optimizer: OptimizerCallable = torch.optim.SGD,
        schedule: Schedule | None = None,
        reference_batch_size: int | None = None,
        clip_each_tensor: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
        lr_factors: dict[str, float] | None = None,
        weights: str | None = None,
        inference: Inference | None = None,
        boundary: bool = False,
    ) -> None:
        super().__init__(
            network, optimizer, schedule, reference_batch_size, clip_each_tensor, channels_last, compile, lr_factors
        )
        self.weights = weights
        self.inference = inference or Whole()
        self.boundary = boundary
        self.last_predictions: list[dict[str, Any]] = []

    @property
    def image_size(self) -> None:
        """Segmenters take pictures of any size."""
        return None

    def setup(self, stage: str) -> None:
        """Load the weights to start from, unless a checkpoint is about to be loaded."""
        if self.weights is not None and self.trainer.ckpt_path is None:
            load_weights(self.network, self.weights, class_names=self.trainer.datamodule.class_names)
            self.weights = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The `loss` of a batch, the sum of the weighted terms, and the terms."""
        outputs = self.network(self._preprocessed(batch["image"], batch["image_size"]))
        return self.training_loss(self.network.loss_terms(outputs, batch["mask"]), len(batch["image"]))

    def new_metrics(self, split: str) -> dict[str, ExactMetric]:
        """Losses, and what one confusion matrix gives."""
        data = self.trainer.datamodule
        size = data.size(split)
        return {
            "loss": DatasetLoss(size),
            "segmentation": SegmentationMetric(data.class_names, size, boundary=self.boundary),
        }

    def evaluate(self, batch: dict[str, Any], split: str) -> None:
        """Losses and labels of a batch."""
        self.last_predictions = []
        for rows, images, outputs in self._groups(batch):
            masks = batch["mask"][rows, : images.shape[2], : images.shape[3]]
            terms = self.network.loss_terms(outputs, masks)
            self.metrics[split]["loss"].update(batch["index"][rows], terms)
            self.last_predictions += self._predictions(batch, rows, images, outputs)
        truths = dict(zip(batch["index"].tolist(), batch["label"], strict=True))
        for found in self.last_predictions:
            truth = truths[found["index"]].cpu().numpy()
            self.metrics[split]["segmentation"].update(found["index"], found["labels"], truth)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Labels per picture as numpy arrays: index, labels (h, w) uint8 in the original picture."""
        return [
            found
            for rows, images, outputs in self._groups(batch)
            for found in self._predictions(batch, rows, images, outputs)
        ]

    def _preprocessed(self, images: Tensor, image_size: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network.preprocess(images, image_size)

    def _groups(self, batch: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Rows of the batch that have one size, their pictures without padding, and the network's outputs."""
        sizes, group = batch["image_size"].unique(dim=0, return_inverse=True)
        for i, (height, width) in enumerate(sizes.tolist()):
            rows = torch.nonzero(group == i)[:, 0]
            images = self._preprocessed(batch["image"][rows, :, :height, :width], batch["image_size"][rows])
            yield rows, images, self.network(images)

    def _predictions(
        self, batch: dict[str, Any], rows: Tensor, images: Tensor, outputs: dict[str, Tensor]
    ) -> list[dict[str, Any]]:
        scores = self.inference(self.network, images, outputs["out"])
        sizes, indices = batch["original_size"][rows].tolist(), batch["index"][rows].tolist()
        return [
            {"index": index, "labels": labels_at(score, size)}
            for index, score, size in zip(indices, scores, sizes, strict=True)
        ]


def labels_at(scores: Tensor, size: list[int]) -> np.ndarray:
    """The class with the largest score for every pixel of a picture.

    Args:
        scores: (K, h, w), at any resolution.
        size: height and width of the picture.

    Returns:
        (height, width) uint8.
    """
    if list(scores.shape[-2:]) != list(size):
        scores = F.interpolate(scores[None], tuple(size), mode="bilinear", align_corners=False)[0]
    return scores.argmax(0).to(torch.uint8).cpu().numpy()
