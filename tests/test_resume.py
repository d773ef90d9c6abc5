"""Training that is stopped and goes on, through the command line and real signals, ends as if it was not."""

import signal
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT, assert_same_training, finish, last_checkpoint, start, train

# 7 batches, hence 4 steps (the last one of a single batch) in each of 3 epochs; validation after the second.
TRAINING = [
    "--config", str(ROOT / "configs" / "efficientdet_d0.yaml"), "--data.root=../shapes",
    "--data.train_images=14", "--data.val_images=2", "--data.test_images=0", "--data.batch_size=2",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=3", "--trainer.accumulate_grad_batches=2",
    "--trainer.check_val_every_n_epoch=2", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
    "--trainer.logger=callbacks.loggers.AppendingCSVLogger", "--last_checkpoint.every_n_train_steps=2",
]  # fmt: skip
GO_ON = ["--ckpt_path", "last"]


def stop(batch: int, name: str = "SIGKILL", rank: int | None = None) -> list[str]:
    """Arguments that make the processes send themselves a signal before a batch."""
    options = {"batch": batch, "name": name} | ({} if rank is None else {"rank": rank})
    return [
        "--trainer.callbacks+=tests.helpers.SignalAt",
        *(f"--trainer.callbacks.{key}={value}" for key, value in options.items()),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory for all runs of this file, with what an uninterrupted training leaves in `whole`."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("resume") / "here"
        folder.mkdir()
        patch.chdir(folder)
        first = [
            train(*TRAINING, "--run_dir=whole"),
            train(*TRAINING, "--run_dir=killed", *stop(10)),
            train(*TRAINING, "--run_dir=terminated", *stop(10, "SIGTERM")),
        ]
        results = [finish(process) for process in first]
        assert [status for status, _ in results] == [0, -signal.SIGKILL, 143], "\n\n".join(text for _, text in results)
        yield folder


@pytest.fixture
def inside(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_killed_in_an_epoch_and_resumed_with_other_workers(inside):
    assert last_checkpoint(inside / "killed").name == "last-00000004.ckpt"
    status, output = finish(train(*TRAINING, "--run_dir=killed", *GO_ON, "--data.num_workers=2"))
    assert status == 0, output
    assert_same_training(last_checkpoint(inside / "whole"), last_checkpoint(inside / "killed"))
    for name in ("metrics.csv", "results.json"):
        assert (inside / "killed" / name).exists()


def test_terminated_with_its_checkpoint_damaged(inside):
    newest = last_checkpoint(inside / "terminated")
    assert newest.name == "last-00000006.ckpt"  # the step was finished and written
    newest.write_bytes(newest.read_bytes()[:-1000])
    status, output = finish(train(*TRAINING, "--run_dir=terminated", *GO_ON))
    assert status == 0, output
    assert "last-00000006.ckpt: the checkpoint is damaged" in output and "last-00000004.ckpt" in output
    assert_same_training(last_checkpoint(inside / "whole"), last_checkpoint(inside / "terminated"))


def test_two_processes_terminated_killed_and_started_by_torchrun(inside, free_address):
    """Two nodes started by torchrun train what two processes on one machine do, uninterrupted or not."""
    two = [*TRAINING, "--data.train_images=28"]
    host, port = free_address.split(":")
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={host}", f"--master-port={port}"]
    program = [str(ROOT / "train.py"), *two, "--trainer.num_nodes=2", "--run_dir=nodes"]
    nodes = [start(*torchrun, f"--node-rank={node}", *program) for node in (0, 1)]
    for process in nodes:
        status, output = finish(process)
        assert status == 0, output

    local = [*two, "--trainer.devices=2", "--run_dir=local", "--last_checkpoint.check_signal_every_n_steps=3"]
    # Only the second process is told; both finish the same step and write one checkpoint.
    status, output = finish(train(*local, *stop(2, "SIGTERM", rank=1)))
    assert status == 143, output
    assert last_checkpoint(inside / "local").name == "last-00000003.ckpt"
    status, output = finish(train(*local, *GO_ON, *stop(15)))
    assert status == -signal.SIGKILL, output
    assert last_checkpoint(inside / "local").name == "last-00000008.ckpt"
    status, output = finish(train(*local, *GO_ON))
    assert status == 0, output

    assert_same_training(last_checkpoint(inside / "nodes"), last_checkpoint(inside / "local"))
    states = torch.load(last_checkpoint(inside / "local"), weights_only=True)["random_states"]
    assert len(states) == 2
    assert (inside / "nodes" / "results.json").exists()
