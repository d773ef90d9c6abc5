"""What all callbacks share that write `predictions/` in the run directory."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter


class PredictionFolder(BasePredictionWriter):
    """Base class; `keep` is called with each prediction as soon as it is made."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    @abstractmethod
    def keep(self, found: dict[str, Any], data: Any, folder: Path) -> None:
        """Write or remember a prediction.

        Args:
            found: the prediction, with the `index` of what it was made for.
            data: the data module.
            folder: `predictions/`.
        """

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the predictions of a batch."""
        for found in prediction:
            self.keep(found, trainer.datamodule, folder_of(trainer))


def folder_of(trainer: Trainer) -> Path:
    """Where predictions go."""
    return Path(trainer.default_root_dir) / "predictions"


def of_all_processes(trainer: Trainer, results: dict[int, Any]) -> dict[int, Any]:
    """What all processes have, by index and in its order; for the first process, the others get nothing."""
    shards: list[Any] = [results]
    if trainer.world_size > 1:
        shards = [None] * trainer.world_size
        torch.distributed.all_gather_object(shards, results)
    if not trainer.is_global_zero:
        return {}
    merged = {index: result for shard in shards for index, result in shard.items()}  # some were made twice
    return {index: merged[index] for index in sorted(merged)}
