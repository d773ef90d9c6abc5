import itertools
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from callbacks.checkpoint_io import VerifiedCheckpointIO, find_fault, hash_file, load_verified, resolve_checkpoint
from errors import UserError


def content(number: int) -> dict:
    return {"number": number, "tensor": torch.full((1000,), number)}


def save(path: Path, number: int) -> None:
    VerifiedCheckpointIO().save_checkpoint(content(number), path)


def number_in(path: Path) -> int:
    loaded = load_verified(path)
    assert torch.equal(loaded["tensor"], torch.full((1000,), loaded["number"]))
    return loaded["number"]


class Crash(BaseException):
    pass


@pytest.mark.parametrize("hashed", [True, False])
def test_a_crash_at_any_step_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch, hashed):
    calls = itertools.count()
    crash_at = None

    def maybe_crash(function):
        def wrapped(*args, **kwargs):
            if next(calls) == crash_at:
                raise Crash
            return function(*args, **kwargs)

        return wrapped

    path = tmp_path / "best.ckpt"
    for module, name in [(os, "replace"), (os, "fsync"), (torch, "save")]:
        monkeypatch.setattr(module, name, maybe_crash(getattr(module, name)))
    steps = 0
    for second_crash in (False, True):  # and once more before any save succeeds
        for crash_at in itertools.count():
            crash = crash_at
            crash_at, calls = None, itertools.count()
            save(path, 1)
            if not hashed:
                hash_file(path).unlink()
            crash_at, calls = crash, itertools.count()
            try:
                save(path, 2)
                break
            except Crash:
                steps += 1
            assert find_fault(path) is None
            before = number_in(path)
            assert before in (1, 2)
            if second_crash:
                calls = itertools.count()
                with pytest.raises(Crash):
                    save(path, 3)
                assert number_in(path) in (before, 3)
    assert steps >= 16


def _save_for_ever(path: Path) -> None:
    for number in itertools.count():
        save(path, number)


def test_sigkill_while_saving(tmp_path):
    path = tmp_path / "best.ckpt"
    save(path, 0)
    rng = random.Random(0)
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(path,))
        process.start()
        time.sleep(rng.uniform(0.01, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        number_in(path)
    save(path, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]  # no leftovers


def test_a_full_disk_is_reported_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    path = tmp_path / "best.ckpt"
    save(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, 2)
    monkeypatch.undo()
    assert number_in(path) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]


def test_damage_anywhere_is_found(tmp_path):
    path = tmp_path / "best.ckpt"
    save(path, 1)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(50):
        at = rng.randrange(len(whole))
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"best\.ckpt: the checkpoint is damaged"):
                load_verified(path)


def test_a_checkpoint_without_a_hash_is_taken_if_it_is_whole(tmp_path):
    path = tmp_path / "given.ckpt"
    torch.save(content(1), path)
    assert number_in(resolve_checkpoint(str(path), tmp_path)) == 1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"given\.ckpt: the checkpoint is damaged.*--ckpt_path"):
        resolve_checkpoint(str(path), tmp_path)


def test_last_is_the_newest_whole_one(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    for step in (9, 10, 100):
        save(folder / f"last-{step:08d}.ckpt", step)
    save(folder / "best.ckpt", 9)
    assert number_in(resolve_checkpoint("last", tmp_path)) == 100
    assert number_in(resolve_checkpoint("best", tmp_path)) == 9
    newest = folder / "last-00000100.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert number_in(resolve_checkpoint("last", tmp_path)) == 10
    assert "last-00000100.ckpt: the checkpoint is damaged" in caplog.text
    assert "last-00000010.ckpt" in caplog.text


@pytest.mark.parametrize("choice", ["last", "best", "some/where.ckpt"])
def test_a_missing_checkpoint_is_named(tmp_path, choice):
    with pytest.raises(UserError, match=r"checkpoints|best\.ckpt|where\.ckpt"):
        resolve_checkpoint(choice, tmp_path)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "given.ckpt"
    torch.save({"state_dict": Malicious()}, path)
    with pytest.raises(UserError, match=r"given\.ckpt"):
        load_verified(path)
    assert not Path("executed").exists()


def test_removing_takes_the_hash_along(tmp_path):
    save(tmp_path / "best.ckpt", 1)
    VerifiedCheckpointIO().remove_checkpoint(tmp_path / "best.ckpt")
    assert not list(tmp_path.iterdir())
