"""Stop a training whose loss is not a number any more, before a checkpoint remembers it."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from errors import UserError


class FiniteLoss(Callback):
    """Stops at a loss that is infinite or not a number; all processes stop at the same step.

    Looks at everything that `training_step` returns, so that the terms of the loss are named if they are returned
    beside it. Whether a step was finite is known one step later, or when a checkpoint is about to be written: the
    device is never waited for in between. No checkpoint holds weights from after such a step.

    Raises:
        UserError: from the training loop; names the step and the terms.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, list[str], Tensor, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a training before."""
        self._pending = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step before, and note this one."""
        self._look()
        terms = outputs if isinstance(outputs, dict) else {"loss": outputs}
        terms = {name: value for name, value in terms.items() if isinstance(value, Tensor)}
        if not terms:  # the step was skipped
            return
        bad = torch.stack([~value.detach().isfinite().all() for value in terms.values()]).float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        arrived = None
        if bad.is_cuda:
            bad = torch.empty(bad.shape, pin_memory=True).copy_(bad, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = (trainer.global_step, list(terms), bad, arrived)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let no checkpoint be written after a step that was not finite."""
        self._look()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last step."""
        self._look()

    def _look(self) -> None:
        if self._pending is None:
            return
        step, names, bad, arrived = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        if bad.any():
            found = ", ".join(name for name, flag in zip(names, bad.tolist(), strict=True) if flag)
            raise UserError(
                f"the training loss is infinite or not a number at step {step} ({found}); no checkpoint holds it: "
                "lower the learning rate, check the data of this step, or train with --trainer.precision 32"
            )
