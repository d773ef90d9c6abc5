"""Which checkpoints a training leaves: the best one, and the newest two to go on from."""

import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException


class BestCheckpoint(ModelCheckpoint):
    """`checkpoints/best.ckpt`: the highest (or lowest) value of a validation metric.

    Args:
        monitor: the metric.
        mode: `max` or `min`.
    """

    def __init__(self, monitor: str = "val/mAP", mode: str = "max") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run directory."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(Checkpoint):
    """`checkpoints/last-<step>.ckpt`: what a run goes on from; the newest two are kept, in case one is damaged.

    Written every so many optimiser steps, at the end of every epoch, and when the process is told to end: on SIGTERM
    all processes finish the same step, write one checkpoint and leave with status 143. The signal handler itself only
    takes a note, since it may interrupt any code; the processes compare notes every few steps. A validation in progress
    is finished first.

    Args:
        every_n_train_steps: optimiser steps between checkpoints within an epoch; None writes at its end only.
        check_signal_every_n_steps: batches between two looks at the notes, where there are several processes.
    """

    KEEP = 2

    def __init__(self, every_n_train_steps: int | None = None, check_signal_every_n_steps: int = 10) -> None:
        self.every_n_train_steps = every_n_train_steps
        self.check_signal_every_n_steps = check_signal_every_n_steps
        self.told_to_end = False
        self._previous_handler: Any = None
        self._saved_step = -1
        self._step_before = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for SIGTERM, in place of Lightning's handler, which calls collectives from within the signal."""
        self._saved_step = trainer.global_step
        self.told_to_end = False
        self._previous_handler = signal.signal(signal.SIGTERM, self._take_note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the step, to see whether this batch completes one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time to; end if told to."""
        step = trainer.global_step
        if step == self._step_before:  # in the midst of accumulation there are gradients that no checkpoint holds
            return
        due = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0
        told = self._agree(trainer, batch_idx)
        if (due or told) and step != self._saved_step:
            self._save(trainer)
        if told:
            raise SIGTERMException(143)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write at the end of the epoch, after the validation that belongs to it."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signal back."""
        self._restore_handler()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signal back."""
        self._restore_handler()

    def _take_note(self, *_: Any) -> None:
        self.told_to_end = True

    def _agree(self, trainer: Trainer, batch_idx: int) -> bool:
        if trainer.world_size == 1:
            return self.told_to_end
        if (batch_idx + 1) % self.check_signal_every_n_steps and not trainer.is_last_batch:
            return False
        return trainer.strategy.reduce_boolean_decision(self.told_to_end, all=False)

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        if trainer.fast_dev_run:
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        trainer.save_checkpoint(folder / f"last-{trainer.global_step:08d}.ckpt")
        if trainer.is_global_zero:
            for path in sorted(folder.glob("last-*.ckpt"))[: -self.KEEP]:
                trainer.strategy.remove_checkpoint(path)

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None
