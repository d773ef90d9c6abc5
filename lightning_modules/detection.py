"""Train and evaluate any object detector."""

import math
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from lightning_modules.base import TaskModule
from lightning_modules.schedules import Schedule
from metrics.curves import detection_curves
from metrics.detection import DetectionMetric
from metrics.exact import ExactMetric, from_rank_zero
from metrics.loss import DatasetLoss
from metrics.tide import tide
from models.detection.detector import Detections, Detector
from models.detection.postprocessing.tta import TestTimeAugmentation, View
from models.detection.weights import load_weights


class DetectionModule(TaskModule):
    """Trains a `Detector`; validation yields the losses and the detections from one pass of the network.

    The batch is the dictionary that `datamodules.collate.collate_detection` describes.

    Args:
        network: the detector.
        optimizer: see `TaskModule`, like `schedule`, `reference_batch_size`, `clip_each_tensor`, `channels_last`,
            `compile` and `lr_factors`.
        weights: file or URL of weights to start from, published ones or Triptych's own; see `models.detection.weights`.
        protocol: how average precision is computed: `coco`, `voc07` (11 points) or `voc12` (all points).
        test_time_augmentation: views to detect in, and how to fuse what is found; in validation, test and prediction,
            but not while training validates (it takes a pass per view). None: the picture as it is.
    """

    def __init__(
        self,
        network: Detector,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        reference_batch_size: int | None = None,
        clip_each_tensor: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
        lr_factors: dict[str, float] | None = None,
        weights: str | None = None,
        protocol: str = "coco",
        test_time_augmentation: TestTimeAugmentation | None = None,
    ) -> None:
        super().__init__(
            network, optimizer, schedule, reference_batch_size, clip_each_tensor, channels_last, compile, lr_factors
        )
        self.weights = weights
        self.protocol = protocol
        self.test_time_augmentation = test_time_augmentation
        self.last_predictions: list[dict[str, Any]] = []
        self.test_curves: dict[str, Any] | None = None
        self.test_errors: dict[str, Any] | None = None

    @property
    def image_size(self) -> int:
        """The input size that the network was published with, in pixels."""
        return self.network.image_size

    def setup(self, stage: str) -> None:
        """Load the weights to start from, unless a checkpoint is about to be loaded."""
        if self.weights is not None and self.trainer.ckpt_path is None:
            data = self.trainer.datamodule
            load_weights(self.network, self.weights, class_names=data.class_names, category_ids=data.category_ids)
            self.weights = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The `loss` of a batch, the sum of the detector's weighted terms, and the terms."""
        terms = self.network.loss_terms(self._forward(batch), batch["targets"], batch["image_size"])
        return self.training_loss(terms, len(batch["image"]))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Detections per image as numpy arrays: index, boxes (n, 4) XYXY in the original picture, scores, labels."""
        return in_original_pixels(self._detect(batch), batch)

    def on_test_epoch_end(self) -> None:
        """Compute and log the metrics of the test split, the curves behind them and the kinds of errors (TIDE)."""
        super().on_test_epoch_end()
        metric = self.metrics["test"]["detection"]
        self.test_curves = detection_curves(metric)
        self.test_errors = from_rank_zero(lambda: tide(metric))
        values = tide_values(self.test_errors)
        self.results["test"] = {**self.results["test"], **values}
        self.log_dict({f"test/{name}": value for name, value in values.items()})

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["image"]
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs = self.network(self.network.preprocess(images, batch["image_size"]))
        if "proposals" in batch:
            outputs["proposals"] = batch["proposals"], batch["proposals_valid"]
        return outputs

    def _detect(self, batch: dict[str, Any], outputs: dict[str, Any] | None = None) -> Detections:
        """Detections in a batch; `outputs` are those of the network for it, if they are at hand."""

        def detect_in(view: View, images: Tensor, image_size: Tensor) -> Detections:
            seen = {**batch, "image": images, "image_size": image_size}
            if "proposals" in batch:
                seen["proposals"] = view.boxes_to(batch["proposals"])
            return self.network.detect(self._forward(seen), image_size)

        augmentation = None if self.trainer.state.fn == TrainerFn.FITTING else self.test_time_augmentation
        plain = self.network.detect(outputs, batch["image_size"]) if outputs is not None else None
        if augmentation is None:
            return plain or self.network.detect(self._forward(batch), batch["image_size"])
        return augmentation(detect_in, batch["image"], batch["image_size"], self.network.size_divisor, plain)

    def new_metrics(self, split: str) -> dict[str, ExactMetric]:
        """Losses and average precision."""
        ground_truth = self.trainer.datamodule.ground_truth(split)
        return {
            "loss": DatasetLoss(len(ground_truth["image_ids"])),
            "detection": DetectionMetric(ground_truth, protocol=self.protocol),
        }

    def evaluate(self, batch: dict[str, Any], split: str) -> None:
        """Losses and detections of a batch from one pass of the network."""
        outputs = self._forward(batch)
        terms = self.network.loss_terms(outputs, batch["targets"], batch["image_size"])
        self.metrics[split]["loss"].update(batch["index"], terms)
        self.last_predictions = in_original_pixels(self._detect(batch, outputs), batch)
        self.metrics[split]["detection"].update(batch["index"], self.last_predictions)


def tide_values(errors: dict[str, Any]) -> dict[str, float]:
    """What `metrics.tide.tide` returns as single numbers, NaN where nothing is defined."""
    kinds = errors["errors"].items()
    gains = {name: kind["dAP"] for name, kind in kinds} | errors["special"]
    values = {f"tide/dAP/{name}": math.nan if gain is None else gain for name, gain in gains.items()}
    return values | {f"tide/count/{name}": float(kind["count"]) for name, kind in kinds}


def in_original_pixels(detections: dict[str, Tensor], batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections per image, with boxes mapped back to the pixels of the original picture and clipped to it.

    Args:
        detections: boxes (B, D, 4) XYXY in the transformed image, scores (B, D), labels (B, D) with -1 for padding.
        batch: holds `scale` (B, 2) as (x, y), `original_size` (B, 2) as (height, width) and `index` (B,).

    Returns:
        Per image a dictionary of numpy arrays: `index` (an int), `boxes` (n, 4) float32 XYXY, `scores` (n,) float32,
        `labels` (n,) int64, by descending score.
    """
    limits = batch["original_size"].flip(1).repeat(1, 2)[:, None].float()  # (B, 1, 4): w, h, w, h
    boxes = detections["boxes"].float() / batch["scale"].repeat(1, 2)[:, None]
    boxes = torch.minimum(boxes.clamp(min=0), limits).cpu().numpy()
    scores = detections["scores"].float().cpu().numpy()
    labels = detections["labels"].cpu().numpy()
    results = []
    for i, index in enumerate(batch["index"].tolist()):
        keep = labels[i] >= 0
        results.append({"index": index, "boxes": boxes[i][keep], "scores": scores[i][keep], "labels": labels[i][keep]})
    return results
