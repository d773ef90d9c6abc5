import math

import pytest
import torch
from pytorch_lightning import Trainer

from errors import UserError
from lightning_modules.base import optimizer_steps
from lightning_modules.schedules import Constant, WarmupCosine, WarmupSteps


def test_warmup_cosine__efficientdet_values():
    # .08 at batch 64, from .008, one epoch of warm-up; the cosine runs over all steps, warm-up included.
    schedule = WarmupCosine(warmup_epochs=1, warmup_start=0.1)
    rates = [0.08 * schedule.factor(step, steps_per_epoch=100, total_steps=1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.008)
    assert rates[50] == pytest.approx(0.044)
    assert rates[100] == pytest.approx(0.08 * 0.5 * (1 + math.cos(math.pi * 0.1)))
    assert rates[500] == pytest.approx(0.04)
    assert rates[1000] == pytest.approx(0, abs=1e-12)


def test_warmup_steps__1x_recipe():
    schedule = WarmupSteps(warmup_steps=10, warmup_start=0.001)
    factors = [schedule.factor(step, 100, 1200) for step in (0, 5, 10, 799, 800, 1099, 1100)]
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01])


def test_warmup_steps__darknets_burn_in():
    schedule = WarmupSteps(milestones=(0.8, 0.9), warmup_steps=1000, warmup_start=0.0, warmup_power=4)
    factors = [schedule.factor(step, 100, 10_000) for step in (0, 500, 1000, 7999, 8000, 9000)]
    assert factors == pytest.approx([0, 1 / 16, 1, 1, 0.1, 0.01])


def test_constant():
    assert Constant().factor(7, 1, 1) == 1


class _Data:
    batch_size = 4

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(10), batch_size=4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 5}, (3, 15)),
        ({"max_epochs": 5, "accumulate_grad_batches": 2}, (2, 10)),
        ({"max_epochs": 5, "limit_train_batches": 2}, (2, 10)),
        ({"max_epochs": 5, "max_steps": 7}, (3, 7)),
        ({"max_epochs": -1, "max_steps": 7}, (3, 7)),
    ],
)
def test_optimizer_steps(options, expected):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False, **options)
    trainer.datamodule = _Data()
    assert optimizer_steps(trainer) == expected


def test_optimizer_steps__endless_training_is_refused():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=-1)
    trainer.datamodule = _Data()
    with pytest.raises(UserError, match=r"set one"):
        optimizer_steps(trainer)
