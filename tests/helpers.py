"""What several tests of the command line share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from pytorch_lightning import Callback

ROOT = Path(__file__).parent.parent
D0 = str(ROOT / "configs" / "efficientdet_d0.yaml")

# Few and small pictures, two optimiser steps: enough to run every line.
SMALL = [
    "--data.train_images=6", "--data.val_images=5", "--data.test_images=3", "--data.batch_size=2",
    "--data.eval_batch_size=2", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--trainer.num_sanity_val_steps=0",
]  # fmt: skip


class SignalAt(Callback):
    """Sends this process a signal before a batch: the machine is lost, or takes its leave.

    Args:
        batch: number of batches trained with before, over all epochs and restarts.
        name: `SIGKILL` or `SIGTERM`.
        rank: the process to send it to; None for every process.
    """

    def __init__(self, batch: int, name: str = "SIGKILL", rank: int | None = None) -> None:
        self.batch = batch
        self.signal = signal.Signals[name]
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch and self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), self.signal)


def start(*command: str, **environment: str) -> subprocess.Popen:
    """Start a Python program in the present directory, on one thread."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *command],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(*arguments: str, **environment: str) -> subprocess.Popen:
    """Start `train.py`."""
    return start(str(ROOT / "train.py"), *arguments, **environment)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a program's end: (status, what it printed); a killed program's status is minus the signal."""
    try:
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, output


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run to go on from."""
    return max((run / "checkpoints").glob("last-*.ckpt"))


def assert_same_training(first: Path, second: Path) -> None:
    """Two checkpoints hold the same weights, average, optimiser, schedule and random states, bit for bit."""
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    keys = ["state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step"]
    for key in [*keys, "random_states"]:
        assert key in a
        assert_equal(a[key], b[key], key)


def assert_equal(a, b, place: str) -> None:
    """Nested dictionaries, sequences and tensors are the same, bit for bit."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place
