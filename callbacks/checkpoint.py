"""Which checkpoints a training leaves: the best one, and the newest two to go on from."""

import signal
import threading
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException


class BestCheckpoint(ModelCheckpoint):
    """`checkpoints/best.ckpt`: the highest (or lowest) value of a validation metric.

    A metric without a value (NaN) counts as the worst; without a validation split nothing is written.

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the best value so far, if this run directory holds the checkpoint that reached it.

        Lightning compares the directories' names instead, so that a run that was moved, or is resumed from elsewhere,
        would forget its best value and replace the checkpoint by a worse one.
        """
        best = Path(self.dirpath) / "best.ckpt"
        if not state_dict["best_model_path"] or not best.exists():
            return
        here = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
        super().load_state_dict({**state_dict, **here, "best_k_models": {str(best): state_dict["best_model_score"]}})


class LastCheckpoint(Checkpoint):
    """`checkpoints/last-<step>.ckpt`: what a run goes on from; the newest two are kept, in case one is damaged.

    Written every so many optimiser steps, at the end of every epoch, and when the process is told to end: on SIGTERM
    all processes finish the same step, write one checkpoint and leave with status 143. The signal handler itself only
    takes a note, since it may interrupt any code; the processes compare notes every few steps. Where a validation
    follows a step, the checkpoint is written after it: Lightning would leave the validation out on resumption.
    Outside training there is nothing to write, and SIGTERM ends the process at once.

    Nothing is written on other errors: they may come in the midst of a step, on one process only.

    Args:
        every_n_train_steps: optimiser steps between checkpoints within an epoch; None writes at its end only.
        check_signal_every_n_steps: optimiser steps between two looks at the notes, where there are several processes.
    """

    KEEP = 2

    def __init__(self, every_n_train_steps: int | None = 500, check_signal_every_n_steps: int = 10) -> None:
        self.every_n_train_steps = every_n_train_steps
        self.check_signal_every_n_steps = check_signal_every_n_steps
        self._noted = False  # this process received SIGTERM
        self._ending = False  # all processes know that one did
        self._due = False
        self._saved_step = -1
        self._step_before = -1

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside training: end at once on SIGTERM."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting, and take notes of SIGTERM."""
        self._saved_step = trainer.global_step
        self._noted = self._ending = self._due = False
        self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside training: end at once on SIGTERM."""
        self._listen(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside training: end at once on SIGTERM."""
        self._listen(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside training: end at once on SIGTERM."""
        self._listen(trainer)

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
        if self.every_n_train_steps is not None and step % self.every_n_train_steps == 0:
            self._due = True
        if trainer.world_size == 1:
            self._ending = self._noted
        elif step % self.check_signal_every_n_steps == 0 or trainer.is_last_batch:
            self._ending = trainer.strategy.reduce_boolean_decision(self._noted, all=False)
        epoch_loop = trainer.fit_loop.epoch_loop
        if not trainer.is_last_batch and not epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._write_and_end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write or end if it was time to before the validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.is_last_batch:
            self._write_and_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write at the end of the epoch, after the validation that belongs to it."""
        self._due = True
        self._write_and_end(trainer)

    def _write_and_end(self, trainer: Trainer) -> None:
        if (self._due or self._ending) and trainer.global_step != self._saved_step:
            self._save(trainer)
        self._due = False
        if self._ending:
            raise SIGTERMException

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        if trainer.fast_dev_run:
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        trainer.save_checkpoint(folder / f"last-{trainer.global_step:08d}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            for path in sorted(folder.glob("last-*.ckpt"))[: -self.KEEP]:
                trainer.strategy.remove_checkpoint(path)

    def _listen(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handler, which calls collectives from within the signal (Lightning #21406).

        The Trainer puts its handlers in place after `setup` and takes them away when it is done.
        """

        def receive(*_: Any) -> None:
            if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
                self._noted = True
                return
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)
            raise SIGTERMException

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, receive)
