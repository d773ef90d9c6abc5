"""What every task's LightningModule shares: optimiser, schedule, clipping, compilation."""

import logging
import math

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import OptimizerCallable
from torch import nn

from errors import UserError
from lightning_modules.schedules import Constant, Schedule

log = logging.getLogger(__name__)


class TaskModule(LightningModule):
    """A network with its optimiser and learning-rate schedule.

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
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.optimizer = optimizer
        self.schedule = schedule or Constant()
        self.reference_batch_size = reference_batch_size
        self.clip_each_tensor = clip_each_tensor
        self.channels_last = channels_last
        self.results: dict[str, dict[str, float]] = {}  # the metrics of the last validation and test, by split
        if compile:
            self.network.compile()

    def configure_optimizers(self) -> dict:
        """The optimiser over two parameter groups, stepped by the closed-form schedule.

        Weight decay applies to parameters with more than one dimension (the kernels), not to biases or to the scale
        and shift of a normalisation.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = self.optimizer([group for group in groups if group["params"]])
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
