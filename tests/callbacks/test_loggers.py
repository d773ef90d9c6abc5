import csv
import json
import socket
import struct

import numpy as np
import pytest
from wandb.proto import wandb_internal_pb2

from callbacks import loggers
from callbacks.loggers import AppendingCSVLogger, SafeWandbLogger, decide_mode, wandb_boxes


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_csv__late_columns_keep_old_rows(tmp_path):
    logger = AppendingCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0}, 0)
    logger.log_metrics({"val/mAP": 0.25}, 0)
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert [(r["step"], r["train/loss"], r["val/mAP"]) for r in table(tmp_path)] == [
        ("0", "2.0", ""),
        ("0", "", "0.25"),
        ("1", "1.0", ""),
    ]


def test_csv__a_resumed_run_replaces_what_it_repeats(tmp_path):
    first = AppendingCSVLogger(str(tmp_path))
    for step in range(5):
        first.log_metrics({"train/loss": step}, step)
    AppendingCSVLogger(str(tmp_path)).log_metrics({"test/mAP": 0.5}, 0)  # an evaluation deletes nothing
    assert len(table(tmp_path)) == 6
    resumed = AppendingCSVLogger(str(tmp_path))
    for step in (3, 4, 5):
        resumed.log_metrics({"train/loss": 10 + step}, step)
    losses = [(r["step"], r["train/loss"]) for r in table(tmp_path) if r["train/loss"]]
    assert losses == [("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "13.0"), ("4", "14.0"), ("5", "15.0")]


def records(folder):
    """All records of an offline run, read back from its file.

    The file is a LevelDB log after a header of seven bytes: blocks of 32 KiB, chunks in them with checksum (4 bytes),
    length (2) and type (1: whole, 2: first, 3: middle, 4: last).
    """
    (file,) = folder.rglob("*.wandb")
    data, position, parts, result = file.read_bytes(), 7, [], []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            result.append(record)
            parts = []
    return result


def test_wandb__offline_run_read_back(tmp_path):
    logger = SafeWandbLogger(save_dir=str(tmp_path), mode="offline")
    logger.log_hyperparams({"model": {"init_args": {"lr": 0.125}}})
    logger.log_metrics({"train/loss": 3.5}, 7)
    boxes = wandb_boxes(np.array([[1.0, 2.0, 9.0, 8.0]]), np.array([1]), ["cat", "dog"], np.array([0.75]))
    pictures = [{"image": np.zeros((20, 30, 3), np.uint8), "boxes": {"predictions": boxes}}]
    logger.log_pictures("val/pictures", pictures, 7)
    logger.close(0)
    found = records(tmp_path)
    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert run.run_id == (tmp_path / "wandb_run_id").read_text()
    configs = [r.run.config.update for r in found if r.HasField("run")] + [
        r.config.update for r in found if r.HasField("config")
    ]
    assert any(u.key == "model" and json.loads(u.value_json)["init_args"]["lr"] == 0.125 for c in configs for u in c)
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
        for r in found
        if r.HasField("history")
    ]
    assert any(row.get("train/loss") == 3.5 and row["trainer/global_step"] == 7 for row in history)
    assert any(name.startswith("val/pictures") for row in history for name in row)
    (drawn,) = tmp_path.rglob("*.boxes2D.json")
    (box,) = json.loads(drawn.read_text())["box_data"]
    assert box["class_id"] == 1 and box["box_caption"] == "dog 0.75" and box["domain"] == "pixel"
    assert list(tmp_path.rglob("media/images/val/*.png"))


def test_wandb__a_resumed_run_is_the_same_run(tmp_path):
    assert SafeWandbLogger(save_dir=str(tmp_path)).version == SafeWandbLogger(save_dir=str(tmp_path)).version
    assert SafeWandbLogger(save_dir=str(tmp_path / "other")).version != SafeWandbLogger(save_dir=str(tmp_path)).version


@pytest.mark.parametrize("broken", ["init", "log", "finish", "config"])
def test_wandb__a_failure_never_reaches_the_training(tmp_path, monkeypatch, caplog, broken):
    def fail(*args, **kwargs):
        raise RuntimeError("server on fire")

    class Config:
        update = fail if broken == "config" else staticmethod(lambda *a, **k: None)

    class Run:
        config = Config
        log = fail if broken == "log" else staticmethod(lambda *a, **k: None)
        finish = fail if broken == "finish" else staticmethod(lambda *a, **k: None)
        define_metric = staticmethod(lambda *a, **k: None)

    monkeypatch.setattr(loggers.wandb, "init", fail if broken == "init" else lambda **k: Run)
    logger = SafeWandbLogger(save_dir=str(tmp_path))
    logger.log_hyperparams({})
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    logger.close(0)
    assert caplog.text.count("the training goes on") == 1 and "server on fire" in caplog.text


def test_mode__offline_without_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert decide_mode() == "offline"


def test_mode__offline_without_a_server_online_with_one(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert decide_mode() == "offline"  # nobody listens yet
        listener.listen()
        assert decide_mode() == "online"
