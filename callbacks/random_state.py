"""The state of all random generators of all processes, in the checkpoint."""

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Saves and restores the random streams of Python, NumPy, PyTorch and CUDA, for every process.

    Lightning saves none of them, so that dropout and stochastic depth would differ after a resumption. The states are
    put back when training starts, after everything that draws before it. A run that is resumed on another number of
    processes keeps the streams that it is started with.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collect the states of all processes."""
        version, keys, position, has_gauss, gauss = np.random.get_state()
        mine = {
            "python": [list(part) if isinstance(part, tuple) else part for part in random.getstate()],
            "numpy": [version, keys.tolist(), position, has_gauss, gauss],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        states = [mine]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the states until training starts."""
        self._states = checkpoint.get("random_states")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put this process's states back."""
        states, self._states = self._states, None
        if states is None or len(states) != trainer.world_size:
            return
        mine = states[trainer.global_rank]
        random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in mine["python"]))
        version, keys, position, has_gauss, gauss = mine["numpy"]
        np.random.set_state((version, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(mine["torch"])
        if mine["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])
