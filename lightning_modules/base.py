"""What every task's LightningModule shares: optimiser, schedule, clipping, compilation."""

import logging
import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from errors import UserError
from lightning_modules.schedules import Constant, Schedule
from metrics.exact import ExactMetric
from models.loss_term import LossTerm

log = logging.getLogger(__name__)


class TaskModule(LightningModule):
    """A network with its optimiser, its learning-rate schedule, and exact metrics.

    A task defines `training_step`, `new_metrics` and `evaluate`. Reported metrics are numbers of the whole split, the
    same whatever the batch size and the number of processes.

    Args:
        network: any network of the task.
        optimizer: a callable that takes parameter groups; its `lr` is the base learning rate.
        schedule: the factor on the base learning rate, by optimiser step.
        reference_batch_size: the batch that `lr` was chosen for. The rate is scaled by (global batch / reference),
            the global batch being batch size x processes x accumulated batches (linear scaling, Goyal et al. 2017).
            `null` takes `lr` as it stands.
        clip_each_tensor: norm to which each parameter's own gradient is clipped, before the Trainer's
            `gradient_clip_val` clips the global norm (the EfficientDet authors do both, at 10).
        channels_last: lay images and convolutions out as NHWC, the faster layout on GPUs and CPUs.
        compile: run the network through `torch.compile`.
        lr_factors: factors on the learning rate of the parameters whose names match a pattern, such as
            `{"*.bias": 2}` (Caffe's recipes) or `{"network.auxiliary.*": 10}`; all factors that match are multiplied.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        reference_batch_size: int | None,
        clip_each_tensor: float | None,
        channels_last: bool,
        compile: bool,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.optimizer = optimizer
        self.schedule = schedule or Constant()
        self.reference_batch_size = reference_batch_size
        self.clip_each_tensor = clip_each_tensor
        self.channels_last = channels_last
        self.lr_factors = lr_factors or {}
        self.results: dict[str, dict[str, float]] = {}  # the metrics of the last validation and test, by split
        # By split and name. Plain dictionaries, so that metrics are no submodules: they hold no parameters and stay
        # on the CPU.
        self.metrics: dict[str, dict[str, ExactMetric]] = {}
        if compile:
            self.network.compile()

    def configure_optimizers(self) -> dict:
        """The optimiser over parameter groups, stepped by the closed-form schedule.

        Weight decay applies to parameters with more than one dimension (the kernels), not to biases or to the scale
        and shift of a normalisation.
        """
        optimizer = self.optimizer(self._parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor", 1.0)
        if self.reference_batch_size is not None:
            batch = global_batch_size(self.trainer)
            for group in optimizer.param_groups:
                group["lr"] *= batch / self.reference_batch_size
            log.info(
                "learning rate %.4g = the configured rate x global batch %d / reference batch %d",
                optimizer.param_groups[0]["lr"],
                batch,
                self.reference_batch_size,
            )
        steps_per_epoch, total_steps = optimizer_steps(self.trainer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule.factor(step, steps_per_epoch, total_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def training_loss(self, terms: dict[str, LossTerm], batch_size: int) -> dict[str, Tensor]:
        """What `training_step` returns: the `loss`, the sum of the weighted terms, and the terms; all are logged."""
        values = {name: term.value() for name, term in terms.items()}
        loss = torch.stack(list(values.values())).sum()
        parts = {name: value.detach() for name, value in values.items()}
        self.log("train/loss", loss, prog_bar=True, batch_size=batch_size)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=batch_size)
        return {"loss": loss, **parts}

    def new_metrics(self, split: str) -> dict[str, ExactMetric]:
        """The metrics of a split; what they compute is reported together."""
        raise NotImplementedError(f"{type(self).__name__} must define new_metrics()")

    def evaluate(self, batch: dict[str, Any], split: str) -> None:
        """Update `self.metrics[split]` with a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate()")

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._start("val")

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        self._start("test")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect what the metrics need of a batch, keyed by the samples' indices."""
        self.evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect what the metrics need of a batch, keyed by the samples' indices."""
        self.evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of the validation split."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the metrics of the test split."""
        self._finish("test")

    def after_fit(self, checkpoint: str | None) -> None:
        """Learn what is left when the last optimiser step is done, such as R-CNN's SVMs; nothing by default.

        Called on all processes between `fit` and the validation and test of the best checkpoint.

        Args:
            checkpoint: the best one, which the result is written into; None if there is none, and the weights in memory
                are tested.
        """

    def report(self, values: dict[str, float], split: str) -> dict[str, float]:
        """What is logged of the metrics' values: all of them, unless a task adds what follows from them."""
        return values

    def _start(self, split: str) -> None:
        if split not in self.metrics:
            self.metrics[split] = self.new_metrics(split)
        for metric in self.metrics[split].values():
            metric.reset()

    def _finish(self, split: str) -> None:
        # A sanity check and `limit_val_batches` see a part of the split on purpose; otherwise a part is an error.
        limit = self.trainer.limit_val_batches if split == "val" else self.trainer.limit_test_batches
        complete = not self.trainer.sanity_checking and isinstance(limit, float) and limit == 1.0  # 1 is one batch
        values: dict[str, float] = {}
        for metric in self.metrics[split].values():
            metric.complete = complete
            values.update(metric.compute())
        self.results[split] = self.report(values, split)
        self.log_dict({f"{split}/{name}": value for name, value in self.results[split].items()})

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters to learn, by whether they decay and by their factor on the learning rate."""
        unused = set(self.lr_factors)
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            matching = [pattern for pattern in self.lr_factors if fnmatchcase(name, pattern)]
            unused -= set(matching)
            factor = math.prod(self.lr_factors[pattern] for pattern in matching)
            groups.setdefault((parameter.ndim > 1, factor), []).append(parameter)
        if unused:
            raise UserError(
                f"model.lr_factors has the pattern {min(unused)!r}, which no parameter's name matches; names look like "
                f"{next(iter(dict(self.named_parameters())))}"
            )
        return [
            {"params": parameters, "lr_factor": factor, **({} if decays else {"weight_decay": 0.0})}
            for (decays, factor), parameters in sorted(groups.items(), key=lambda group: (not group[0][0], group[0][1]))
        ]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each tensor's gradient if asked to, then what the Trainer is asked to clip."""
        if self.clip_each_tensor is not None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms = torch._foreach_norm(gradients)
            factors = (self.clip_each_tensor / (torch.stack(norms) + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, list(factors.unbind()))
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def global_batch_size(trainer: Trainer) -> int:
    """Samples per optimiser step: batch size x processes x accumulated batches."""
    return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches


def optimizer_steps(trainer: Trainer) -> tuple[int, int]:
    """Optimiser steps per epoch, and of the whole training.

    Counted from the length of a fresh loader: `Trainer.estimated_stepping_batches` would start the loader that is
    about to be resumed (Lightning #20550).

    Raises:
        UserError: the training has no end, so that a schedule cannot be laid over it.
    """
    batches = len(trainer.datamodule.train_dataloader())
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = max(math.ceil(batches / trainer.accumulate_grad_batches), 1)
    totals = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        totals.append(per_epoch * trainer.max_epochs)
    if trainer.max_steps >= 0:
        totals.append(trainer.max_steps)
    if not totals:
        raise UserError(
            "trainer.max_epochs and trainer.max_steps are both unlimited: set one, the schedule needs an end"
        )
    return per_epoch, min(totals)
