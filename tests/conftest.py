"""Fixtures for all tests: no network, few threads, small sample data."""

import os
import socket

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    """Every test runs in a directory of its own: what it writes by relative path disturbs nobody."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def free_address() -> str:
    """An address on this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
