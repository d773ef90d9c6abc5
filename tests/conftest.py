"""Fixtures for all tests: no network, few threads, small sample data."""

import os
import socket
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import pytest
import torch

from tests.helpers import D0, SMALL

torch.set_num_threads(1)  # tiny networks gain nothing from more, and subprocesses run beside them


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The run directory of a short training of EfficientDet-D0, in a folder that also holds its sample data."""
    from train import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["--config", D0, *SMALL, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"
