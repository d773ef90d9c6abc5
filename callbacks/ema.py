"""Exponential moving average of the weights, with the ramp that detectors are trained with."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging


class ExponentialMovingAverage(WeightAveraging):
    """Lightning's weight averaging with TensorFlow's ramped decay.

    After the n-th update the decay is min(`decay`, (1 + n) / (10 + n)), so that the average follows the weights
    closely at first and a decay of .9998 does not hold on to the initial ones (`tf.train.ExponentialMovingAverage`
    with `num_updates`, as EfficientDet is trained). Parameters and floating-point buffers (the running statistics of
    BatchNorm) are averaged. Validation runs with the average; checkpoints hold the average in `state_dict` and the
    raw weights in `current_model_state`.

    Args:
        decay: upper bound of the decay per optimiser step.
    """

    def __init__(self, decay: float = 0.9998) -> None:
        super().__init__(multi_avg_fn=self._update)
        self.decay = decay

    @torch.no_grad()
    def _update(self, averaged: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor) -> None:
        # All tensors of one call share a dtype and a device.
        if not averaged[0].is_floating_point():  # BatchNorm's counters
            torch._foreach_copy_(averaged, current)
            return
        n = self._latest_update_step  # equals `updates`, without waiting for the device to tell
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the average of a run that is resumed; validation and test need `state_dict` only."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the average after training.

        Otherwise a `Trainer.test(ckpt_path=...)` that follows `fit` would load the raw weights of the checkpoint
        in place of the averaged ones (Lightning takes every checkpoint for one to resume from).
        """
        if stage == "fit":
            self._average_model = None
