"""YOLO as a user meets it: `main([...])` in process, on small generated data and thin networks."""

import functools
import http.server
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from models.detection import TestTimeAugmentation
from models.detection.yolo.darknet_weights import write_darknet
from tests.helpers import ROOT, SMALL, finish, train
from train import main

TTA = "--model.test_time_augmentation"


def yolo(version: int, *options: str) -> list[str]:
    """Arguments of a thin network on pictures of 64 pixels (YOLOv1: 128)."""
    size = 128 if version == 1 else 64
    return [
        "--config", str(ROOT / "configs" / f"yolov{version}.yaml"), *SMALL, "--data.picture_size=64",
        f"--data.image_size={size}", f"--model.network.image_size={size}", "--model.network.width=0.03125",
        "--trainer.logger=callbacks.loggers.AppendingCSVLogger", *options,
    ]  # fmt: skip


def results(run) -> dict:
    return json.loads((run / "results.json").read_text())


def evaluated(command: str, run, *options: str) -> dict:
    """What YOLOv3 is measured at; the split that the command is about."""
    assert main([command, *yolo(3, *options), "--run_dir", str(run)]) == 0
    return results(run)["val" if command == "validate" else "test"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a short training of YOLOv3, in a folder that also holds its sample data."""
    folder = tmp_path_factory.mktemp("yolov3")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        steps = ["--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=8", "--trainer.limit_train_batches=3"]
        assert main(yolo(3, *steps, "--run_dir", str(folder / "run"))) == 0
    return folder / "run"


@pytest.fixture
def best(run, monkeypatch) -> str:
    """The checkpoint; the test works where the sample data is."""
    monkeypatch.chdir(run.parent)
    return str(run / "checkpoints" / "best.ckpt")


def test_a_run_knows_its_errors(run):
    found, errors = results(run)["test"], json.loads((run / "figures" / "test_errors.json").read_text())
    for kind, of_kind in errors["errors"].items():
        assert found[f"tide/dAP/{kind}"] == of_kind["dAP"] and found[f"tide/count/{kind}"] == of_kind["count"]
    for name, gain in errors["special"].items():
        assert found[f"tide/dAP/{name}"] == gain
    assert errors["AP"] == pytest.approx(found["mAP_50"], abs=1e-12)
    assert sum(of_kind["count"] for of_kind in errors["errors"].values()) > 0
    assert np.asarray(Image.open(run / "figures" / "errors.png")).std() > 10
    assert "test/tide/dAP/background" in (run / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("version", [1, 2])
def test_other_versions_train(version, run, monkeypatch, tmp_path):
    monkeypatch.chdir(run.parent)
    sizes = ["--data.training_sizes=[32, 64, 96]", "--data.size_every=1"] if version == 2 else []
    assert main(yolo(version, *sizes, "--run_dir", str(tmp_path / "run"))) == 0
    assert {"mAP", "loss", "box_loss", "objectness_loss", "class_loss"} <= set(results(tmp_path / "run")["val"])


def test_the_same_digits_on_two_processes(best, tmp_path):
    """Precision, losses and the kinds of errors."""
    options = "--ckpt_path", best, "--data.eval_batch_size=1"
    one = evaluated("test", tmp_path / "one", *options)
    status, output = finish(
        train("test", *yolo(3, *options, "--trainer.devices=2"), "--run_dir", str(tmp_path / "two"))
    )
    assert status == 0, output
    assert results(tmp_path / "two")["test"] == one and len(one) > 30


def test_starts_from_a_darknet_file_by_url(best, run, tmp_path, monkeypatch, capsys):
    """Written in darknet's layout, served by this machine: the same digits as from the checkpoint."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    served = tmp_path / "served"
    served.mkdir()
    write_darknet(inference.load(best, device="cpu").network, served / "shapes.weights")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/shapes.weights"
        found = evaluated("validate", tmp_path / "url", "--model.weights", url)
        server.shutdown()
    assert found == results(run)["val"]
    assert evaluated("validate", tmp_path / "file", "--model.weights", str(served / "shapes.weights")) == found
    (served / "cut.weights").write_bytes((served / "shapes.weights").read_bytes()[:-400])
    arguments = yolo(3, "--model.weights", str(served / "cut.weights"), "--run_dir", str(tmp_path / "cut"))
    assert main(["validate", *arguments]) == 2
    assert "cut.weights is too short for YOLOv3" in capsys.readouterr().err


def test_test_time_augmentation(best, run, tmp_path):
    view = [f"{TTA}=models.detection.TestTimeAugmentation"]
    plain = evaluated("test", tmp_path / "one", "--ckpt_path", best, *view, f"{TTA}.flip=false")
    assert plain == results(run)["test"], "one view changes nothing"
    several = evaluated("test", tmp_path / "many", "--ckpt_path", best, *view, f"{TTA}.scales=[1.0, 1.5]")
    changed = {name for name in plain if several[name] != plain[name]}
    assert changed and not any("loss" in name for name in changed)

    picture = sorted((run.parent / "data").rglob("images/val/*"))[0]
    arguments = yolo(3, "--ckpt_path", best, "--data.images", str(picture), *view, "--run_dir", str(tmp_path / "p"))
    assert main(["predict", *arguments]) == 0
    written = json.loads((tmp_path / "p" / "predictions" / "results.json").read_text())
    load = functools.partial(inference.load, best, device="cpu", score_threshold=0.0)
    found = load(test_time_augmentation=TestTimeAugmentation())(picture)
    np.testing.assert_allclose(sorted(row["score"] for row in written), sorted(found.scores), atol=1e-4)
    unchanged = load(test_time_augmentation=TestTimeAugmentation(flip=False))(picture)
    np.testing.assert_array_equal(unchanged.boxes, load()(picture).boxes)
