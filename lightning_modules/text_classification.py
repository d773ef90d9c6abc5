"""Train and evaluate classifiers of sentences and of pairs of sentences."""

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.base import TaskModule
from lightning_modules.schedules import Schedule
from metrics.exact import ExactMetric
from metrics.language import ClassificationMetric
from metrics.loss import DatasetLoss
from models.language.classifier import TextClassifier, classified
from models.language.weights import load_weights


class TextClassificationModule(TaskModule):
    """Trains a `TextClassifier`: a pretrained language model with a head, fine-tuned or as it is, or bags of words.

    Args:
        network: the classifier.
        optimizer: see `TaskModule`, like `schedule`, `reference_batch_size`, `clip_each_tensor`, `compile` and
            `lr_factors`.
        weights: what the encoder, or the whole classifier, starts from: file, folder, URL or `hub:NAME`; see
            `models.language.weights`.
    """

    def __init__(
        self,
        network: TextClassifier,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        reference_batch_size: int | None = None,
        clip_each_tensor: float | None = None,
        compile: bool = False,
        lr_factors: dict[str, float] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__(
            network, optimizer, schedule, reference_batch_size, clip_each_tensor, False, compile, lr_factors
        )
        self.weights = weights

    def setup(self, stage: str) -> None:
        """Load the weights to start from, unless a checkpoint is about to be loaded."""
        if self.weights is not None and self.trainer.ckpt_path is None:
            load_weights(self.network, self.weights, self.trainer.datamodule.tokenizer.state())
            self.weights = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The `loss` of a batch."""
        return self.training_loss(self.network.loss_terms(self.network(batch), batch), len(batch["index"]))

    def new_metrics(self, split: str) -> dict[str, ExactMetric]:
        """The loss; accuracy, F1 and Matthews correlation, or of regression the correlations."""
        size = self.trainer.datamodule.size(split)
        return {"loss": DatasetLoss(size), "classification": ClassificationMetric(size, self.network.num_classes)}

    def evaluate(self, batch: dict[str, Any], split: str) -> None:
        """Loss and scores of a batch."""
        outputs = self.network(batch)
        self.metrics[split]["loss"].update(batch["index"], self.network.loss_terms(outputs, batch))
        self.metrics[split]["classification"].update(batch["index"], outputs["logits"], batch["labels"])

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Per text its `index`, and its `label` and `probabilities` by class, or its `value`."""
        found = classified(self.network(batch)["logits"], self.trainer.datamodule.class_names)
        return [{"index": i, **result} for i, result in zip(batch["index"].tolist(), found, strict=True)]
