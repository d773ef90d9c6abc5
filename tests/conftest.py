"""Fixtures for all tests: no network, few threads, small sample data."""

import os

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
