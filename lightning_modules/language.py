"""Train and evaluate language models."""

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from errors import UserError
from lightning_modules.base import TaskModule
from lightning_modules.schedules import Schedule
from metrics.exact import ExactMetric
from metrics.language import LanguageMetric
from models.language.language_model import LanguageModel
from models.language.predictors import PredictOptions, predictor_for
from models.language.weights import load_weights


class LanguageModule(TaskModule):
    """Trains a `LanguageModel`: forward, backward, in both directions or masked.

    Recurrent models carry their state from batch to batch: row b of a batch goes on where row b of the one before
    ended, unless the batch says that it is `fresh`. The training's state is in every checkpoint.

    Args:
        network: the language model.
        optimizer: see `TaskModule`, like `schedule`, `reference_batch_size`, `clip_each_tensor`, `compile` and
            `lr_factors`.
        weights: file, folder, URL or `hub:NAME` of weights to start from; see `models.language.weights`.
        prediction: what `predict` makes of texts; None is `PredictOptions()`.
    """

    def __init__(
        self,
        network: LanguageModel,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        reference_batch_size: int | None = None,
        clip_each_tensor: float | None = None,
        compile: bool = False,
        lr_factors: dict[str, float] | None = None,
        weights: str | None = None,
        prediction: PredictOptions | None = None,
    ) -> None:
        super().__init__(
            network, optimizer, schedule, reference_batch_size, clip_each_tensor, False, compile, lr_factors
        )
        self.weights = weights
        self.prediction = prediction or PredictOptions()
        self.states: dict[str, Any] = {"train": None, "eval": None}  # of recurrent networks

    def setup(self, stage: str) -> None:
        """Load the weights to start from, unless a checkpoint is about to be loaded."""
        if self.weights is not None and self.trainer.ckpt_path is None:
            load_weights(self.network, self.weights, self.trainer.datamodule.tokenizer.state())
            self.weights = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The `loss` of a batch, the sum of the weighted terms, and the terms."""
        terms = self.network.loss_terms(self._forward(batch, "train"), batch)
        return self.training_loss(terms, len(batch["index"]))

    def new_metrics(self, split: str) -> dict[str, ExactMetric]:
        """Losses, perplexities, accuracies."""
        data = self.trainer.datamodule
        return {"language": LanguageMetric(data.size(split), self.network.perplexities, data.units(split))}

    def evaluate(self, batch: dict[str, Any], split: str) -> None:
        """Losses and right predictions of a batch."""
        outputs = self._forward(batch, "eval")
        terms, right = self.network.loss_terms(outputs, batch), self.network.correct(outputs, batch)
        self.metrics[split]["language"].update(batch["index"], terms, right)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Per text its index and what `prediction` asks for."""
        predictor = predictor_for(self.network, self.trainer.datamodule.tokenizer)
        results = predictor.predict(batch["texts"], self.prediction)
        return [{"index": i, **result} for i, result in zip(batch["index"].tolist(), results, strict=True)]

    def _forward(self, batch: dict[str, Any], kind: str) -> dict[str, Tensor]:
        outputs, state = self.network(batch, self.states[kind])
        self.states[kind] = detached(state)
        return outputs

    def _start(self, split: str) -> None:
        super()._start(split)
        self.states["eval"] = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the recurrent states of all processes."""
        if self.states["train"] is None:
            return
        states = [to_device(self.states["train"], "cpu")]
        if self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, to_device(self.states["train"], "cpu"))
        checkpoint["recurrent_states"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the recurrent state of this process; the loader has checked that its rows are the same."""
        states = checkpoint.get("recurrent_states")
        if states is None or not self.trainer.training:
            return
        if len(states) != self.trainer.world_size:
            raise UserError(
                f"the checkpoint holds the recurrent states of {len(states)} processes, this run has "
                f"{self.trainer.world_size}: go on with the same number"
            )
        self.states["train"] = states[self.trainer.global_rank]

    def on_train_start(self) -> None:
        """The state of a resumed training is on the CPU."""
        self.states["train"] = to_device(self.states["train"], self.device)


def detached(state: Any) -> Any:
    """A nested state without its history."""
    return _mapped(state, lambda tensor: tensor.detach())


def to_device(state: Any, device: Any) -> Any:
    """A nested state on a device."""
    return _mapped(state, lambda tensor: tensor.to(device))


def _mapped(state: Any, function: Any) -> Any:
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: _mapped(value, function) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(value, function) for value in state)
    return state
