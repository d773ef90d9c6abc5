"""W&B: what a run leaves, read back from its file; what happens without a key, without a server, with a dead one."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from callbacks import loggers, wandb_mode
from callbacks.detection_visualisation import wandb_boxes
from callbacks.loggers import SafeWandbLogger
from callbacks.wandb_mode import decide_mode, find_fault
from tests.callbacks.wandb_server import WandbServer
from tests.helpers import finish, start


def records(folder):
    """All records of a run, or of its first part if it was gone on with, read back from its folder.

    The file is a LevelDB log after a header of seven bytes: blocks of 32 KiB, chunks in them with checksum (4 bytes),
    length (2) and type (1: whole, 2: first, 3: middle, 4: last).
    """
    wandb.teardown()  # W&B may still be writing when a run is finished
    file = min(folder.glob("wandb/*run-*/*.wandb"))
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


def history(folder):
    """The rows of a run: metrics by name."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.HasField("history")
    ]


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
    rows = history(tmp_path)
    assert any(row.get("train/loss") == 3.5 and row["trainer/global_step"] == 7 for row in rows)
    assert any(name.startswith("val/pictures") for row in rows for name in row)
    (drawn,) = tmp_path.rglob("*.boxes2D.json")
    (box,) = json.loads(drawn.read_text())["box_data"]
    assert box["class_id"] == 1 and box["box_caption"] == "dog 0.75" and box["domain"] == "pixel"
    assert list(tmp_path.rglob("media/images/val/*.png"))


def test_wandb__what_a_training_leaves(trained):
    found = records(trained)
    assert next(r.run.run_id for r in found if r.HasField("run")) == (trained / "wandb_run_id").read_text()
    config = {item.key: json.loads(item.value_json) for r in found for item in r.config.update}
    assert config["model"]["init_args"]["network"]["init_args"]["variant"] == "d0"
    assert config["trainer"]["max_epochs"] == 1
    rows = history(trained)
    assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == [0, 1]
    results = json.loads((trained / "results.json").read_text())
    for split in ("val", "test"):
        last = [row[f"{split}/mAP_50"] for row in rows if f"{split}/mAP_50" in row][-1]
        assert last == pytest.approx(results[split]["mAP_50"], rel=1e-6)
    panels = {name.rsplit("/", 1)[0] for row in rows for name in row if name.endswith("/_type")}
    assert panels == {"val/pictures", "test/confusion_matrix", "test/precision_recall", "test/f1", "test/errors"}
    boxes = [json.loads(file.read_text()) for file in trained.rglob("*.boxes2D.json")]
    assert any(entry["box_data"] for entry in boxes)


def test_wandb__rows_of_an_offline_run_are_numbered_by_step(tmp_path):
    found = []
    for part, steps in enumerate(((0, 4, 9), (4, 9, 14), (0,))):  # interrupted; resumed; evaluated
        logger = SafeWandbLogger(save_dir=str(tmp_path), mode="offline")
        for step in steps:
            logger.log_metrics({"train/loss": 1.0}, step)
        logger.log_metrics({"val/mAP": 0.5}, 3)
        logger.close(0)
        found.append([(row["_step"], row["trainer/global_step"]) for row in history(tmp_path)])
        (tmp_path / "wandb").rename(tmp_path / f"part{part}")
    assert found == [[(0, 0), (4, 4), (9, 9), (10, 3)], [(4, 4), (9, 9), (14, 14), (15, 3)], [(0, 0), (3, 3)]]


@pytest.mark.parametrize("broken", ["init", "log", "finish", "config"])
def test_wandb__a_failure_never_reaches_the_training(tmp_path, monkeypatch, caplog, broken):
    def fail(*args, **kwargs):
        raise RuntimeError("server\non fire")

    def succeed(*args, **kwargs):
        pass

    run = SimpleNamespace(offline=True, define_metric=succeed)
    run.config = SimpleNamespace(update=fail if broken == "config" else succeed)
    run.log = fail if broken == "log" else succeed
    run.finish = fail if broken == "finish" else succeed
    monkeypatch.setattr(loggers.wandb, "init", fail if broken == "init" else lambda **k: run)
    logger = SafeWandbLogger(save_dir=str(tmp_path), mode="offline")
    logger.log_hyperparams({})
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    logger.close(0)
    assert caplog.text.count("the training goes on") == 1 and "server on fire" in caplog.text


def test_wandb__a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    identities = []

    def init(**options):
        identities.append(options["id"])
        assert options["resume"] == "allow"
        raise RuntimeError("that is all")

    monkeypatch.setattr(loggers.wandb, "init", init)
    for folder in ("a", "a", "b"):
        SafeWandbLogger(save_dir=str(tmp_path / folder), mode="offline").log_metrics({"x": 1.0}, 0)
    first, resumed, other = identities
    assert first == resumed != other


# What a training does, with the server's address in the environment.
ONLINE = """
import os
del os.environ["WANDB_MODE"]
os.environ.pop("WANDB_SERVICE", None)  # of the process that runs the tests
from callbacks.loggers import SafeWandbLogger
for steps in ((0, 1, 2), (2, 3)):
    logger = SafeWandbLogger(save_dir="run")
    logger.log_hyperparams({"seed": 7})
    for step in steps:
        logger.log_metrics({"train/loss": float(step)}, step)
    logger.close(0)
"""
LOST = """
import os
del os.environ["WANDB_MODE"]
os.environ.pop("WANDB_SERVICE", None)  # of the process that runs the tests
from callbacks.loggers import SafeWandbLogger
logger = SafeWandbLogger(save_dir="run", finish_timeout=1)
logger.log_metrics({"train/loss": 0.0}, 0)
for step in range(1, 100):
    logger.log_metrics({"train/loss": float(step)}, step)
logger.close(0)
print("the end of the training")
"""


def environment(server):
    return {"WANDB_SILENT": "false", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40}


def test_wandb__online_a_resumed_run_goes_on_where_it_was():
    with WandbServer() as server:
        status, output = finish(start("-c", ONLINE, **environment(server)))
    assert status == 0, output
    assert len(server.runs) == 1, output
    ((identity, run),) = server.runs.items()
    assert identity == Path("run/wandb_run_id").read_text()
    assert [row["trainer/global_step"] for row in run.rows] == [0, 1, 2, 2, 3]
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4]
    assert run.config["seed"]["value"] == 7


@pytest.mark.skipif("finish_timeout" not in wandb.Settings.model_fields, reason="this W&B waits for its server")
def test_wandb__a_server_that_falls_silent_does_not_hold_the_process():
    with WandbServer(falls_silent=True) as server:
        status, output = finish(start("-c", LOST, **environment(server)))
    assert status == 0, output
    assert "the end of the training" in output
    assert "the training goes on (TimeoutError" in output, output


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """W&B's settings on a machine where nobody ever logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = SimpleNamespace(mode="online", api_key=None, identity_token_file=None, base_url="https://api.wandb.ai")
    monkeypatch.setattr(wandb_mode.wandb, "setup", lambda: SimpleNamespace(settings=found))
    return found


def test_mode__offline_without_a_key(settings, monkeypatch):
    monkeypatch.setattr(wandb_mode, "find_fault", lambda url: None)
    assert decide_mode() == "offline"
    with pytest.warns(UserWarning, match="no API key"):
        assert decide_mode("online") == "offline"


@pytest.mark.parametrize("server", ["api.wandb.ai", "api.forge.coreweave.com", "wandb.example.org:8080"])
def test_mode__online_with_a_key_that_login_kept(settings, monkeypatch, tmp_path, server):
    monkeypatch.setattr(wandb_mode, "find_fault", lambda url: None)
    (tmp_path / ".netrc").write_text(f"machine {server}\n  login user\n  password {'x' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert decide_mode() == ("offline" if "example" in server else "online")
    settings.base_url = f"https://{server}"
    assert decide_mode() == "online"


def test_mode__what_is_asked_for_wins(settings, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb_mode, "find_fault", lambda url: "nobody there")
    assert decide_mode() == "offline"
    assert decide_mode("online") == "online"
    assert decide_mode("disabled") == "disabled"
    settings.mode = "disabled"  # as `wandb disabled` leaves it
    assert decide_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert decide_mode("online") == "offline"


def test_find_fault(free_address):
    assert "refused" in find_fault(f"http://{free_address}")
    with WandbServer() as server:
        assert find_fault(server.url) is None
        assert find_fault(f"{server.url}/nothing") is None
        server.awake.clear()
        assert find_fault(server.url, patience=0.2)
