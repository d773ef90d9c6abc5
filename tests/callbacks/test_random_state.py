import random
from types import SimpleNamespace

import numpy as np
import torch

from callbacks.random_state import RandomState

ONE = SimpleNamespace(world_size=1, global_rank=0)


def draw() -> list:
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.uniform(), torch.rand(3).tolist()]


def saved(tmp_path) -> dict:
    checkpoint = {}
    RandomState().on_save_checkpoint(ONE, None, checkpoint)
    torch.save(checkpoint, tmp_path / "file")
    return torch.load(tmp_path / "file", weights_only=True)


def test_the_streams_go_on_where_they_were(tmp_path):
    draw()
    np.random.normal()  # NumPy keeps the second of two normal numbers in store
    checkpoint = saved(tmp_path)
    expected = draw()
    callback = RandomState()
    callback.on_load_checkpoint(ONE, None, checkpoint)
    assert draw() != expected
    callback.on_train_start(ONE, None)
    assert draw() == expected
    callback.on_train_start(ONE, None)  # another training of the same process is none of the checkpoint's business
    assert draw() != expected


def test_on_another_number_of_processes_the_streams_are_left_alone(tmp_path):
    checkpoint = saved(tmp_path)
    expected = draw()
    callback = RandomState()
    callback.on_load_checkpoint(ONE, None, checkpoint)
    callback.on_train_start(SimpleNamespace(world_size=2, global_rank=0), None)
    assert draw() != expected
