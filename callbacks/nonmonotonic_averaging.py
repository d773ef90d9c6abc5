"""The average of the weights from when validation stops to improve: NT-ASGD (Merity et al. 2018, section 4)."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from callbacks.ema import ExponentialMovingAverage
from errors import UserError


class NonMonotonicAveraging(ExponentialMovingAverage):
    """Averages all weights since the validation loss was worse than the best of those `patience` validations ago.

    The optimiser goes on from its own weights; validation, the best checkpoint and the end of training take the
    average, or, until it begins, the weights as they are. What the moving average does about resumption and tests holds
    here too.

    Args:
        patience: validations within which the loss may get worse.
        monitor: the loss.
    """

    def __init__(self, patience: int = 5, monitor: str = "val/loss") -> None:
        super().__init__()
        self.patience = patience
        self.monitor = monitor
        self.losses: list[float] = []
        self.since: int | None = None  # the optimiser step from which on weights are averaged

    @torch.no_grad()
    def _update(self, averaged: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor) -> None:
        if self.since is None or not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        number = self._latest_update_step - self.since  # of weights that are in the average
        torch._foreach_lerp_(averaged, current, 1 / (number + 1))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to average if the loss is worse than it was."""
        if trainer.sanity_checking or self._average_model is None:
            return
        if self.monitor not in trainer.callback_metrics:
            raise UserError(f"NonMonotonicAveraging watches {self.monitor}, which validation does not report")
        loss = float(trainer.callback_metrics[self.monitor])
        earlier = self.losses[: len(self.losses) - self.patience]
        if self.since is None and earlier and loss > min(earlier):
            self.since = self._latest_update_step
        self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on."""
        return {**super().state_dict(), "losses": self.losses, "since": self.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.losses, self.since = list(state_dict["losses"]), state_dict["since"]
