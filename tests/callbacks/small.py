"""A small network and data for tests of the training loop: dropout, BatchNorm, schedule, average, validation."""

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import Dataset

from callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from callbacks.checkpoint_io import VerifiedCheckpointIO
from callbacks.ema import ExponentialMovingAverage
from callbacks.finite_loss import FiniteLoss
from callbacks.loader_state import LoaderState
from callbacks.random_state import RandomState
from datamodules.loader import EpochBatches, ResumableLoader
from datamodules.randomness import sample_rng


class Samples(Dataset):
    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.from_numpy(sample_rng(0, *key).normal(size=4).astype(np.float32))


class SmallData(LightningDataModule):
    def train_dataloader(self) -> ResumableLoader:
        return self._loader(training=True, shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader(training=False)

    def _loader(self, **options) -> ResumableLoader:
        batches = EpochBatches(length=12, batch_size=2, **options)
        return ResumableLoader(Samples(), batches, collate=torch.stack, num_workers=0)


class SmallModule(LightningModule):
    """Args: scores: the value of val/score at each validation, by global step; by default the mean output."""

    def __init__(self, scores: dict[int, float] | None = None, bad_step: int | None = None) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.scores = scores
        self.bad_step = bad_step

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict:
        first = (self.network(batch) - batch.sum(1, keepdim=True)).square().mean()
        second = self.network(batch).abs().mean() * np.random.uniform()
        if self.global_step == self.bad_step:
            second = second * torch.nan
        return {"loss": first + second, "first": first.detach(), "second": second.detach()}

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        value = self.network(batch).mean() if self.scores is None else self.scores.get(self.global_step, 0.0)
        self.log("val/score", value)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(Callback):
    """Records the steps at which validation ended, and runs `act` before a batch."""

    def __init__(self, batch: int | None = None, act=None) -> None:
        self.batch = batch
        self.act = act
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.act()

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


class Lost(BaseException):
    """Stands for a killed process: nothing is written from here on."""


def lose() -> None:
    raise Lost


def fit(run: Path, *, module=SmallModule, watch: Watch | None = None, resume=None, **options) -> Trainer:
    """Train as train.py does; `every` is the distance of checkpoints in steps, `module` makes the module."""
    every = options.pop("every", 1)
    seed_everything(0 if resume is None else 1, verbose=False)  # a resumed process draws other numbers at first
    trainer = Trainer(
        default_root_dir=run,
        callbacks=[
            RandomState(),
            LoaderState(),
            FiniteLoss(),
            ExponentialMovingAverage(0.9),
            *([watch] if watch else []),
            BestCheckpoint(monitor="val/score"),
            LastCheckpoint(every_n_train_steps=every),
        ],
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            **options,
        },
    )
    trainer.strategy.checkpoint_io = VerifiedCheckpointIO()
    trainer.fit(module(), SmallData(), ckpt_path=resume)
    return trainer
