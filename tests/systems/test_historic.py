"""R-CNN, SPPNet and Fast R-CNN through the command line: proposals, training, SVMs, evaluation, use."""

import json
import shutil

import numpy as np
import pytest
import torch

from inference import load
from tests.helpers import ROOT, SMALL, finish, train
from tools import proposal_recall
from train import main

SVM = ("svm_fitted", "svm_weight", "svm_bias", "ridge_weight", "ridge_bias")


def config(name, *options):
    """The command line of a small run: pictures of 96 pixels, narrow layers."""
    return [
        "--config", str(ROOT / "configs" / f"{name}.yaml"), *SMALL, "--data.picture_size=96", "--data.image_size=96",
        "--data.proposals.workers=0", "--model.network.backbone.width=0.1",
        "--trainer.callbacks=callbacks.prediction_writer.PredictionWriter",
        *(["--model.network.scales=[96,128]"] if name == "sppnet_zf5" else []), *options,
    ]  # fmt: skip


def fit(folder, name, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*config(name, *options), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def results(run):
    return json.loads((run / "results.json").read_text())


def assert_near(found, wanted, rel):
    """The same metrics, those without a value among them."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] is None) == (value is None), name
        assert value is None or found[name] == pytest.approx(value, rel=rel), name


def stage(checkpoint):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: state[f"network.{name}"] for name in SVM}


@pytest.fixture(scope="module")
def rcnn(tmp_path_factory):
    """A run of R-CNN, in a folder with its data and proposals."""
    return fit(tmp_path_factory.mktemp("rcnn"), "rcnn_alexnet")


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """A run of Fast R-CNN, likewise."""
    return fit(tmp_path_factory.mktemp("fast"), "fast_rcnn_vgg16")


def test_one_command_leaves_svms_in_the_best_checkpoint(rcnn):
    found = results(rcnn)
    assert found["checkpoint"].endswith("best.ckpt")
    assert {"loss", "class_loss", "mAP"} <= set(found["val"]) & set(found["test"])
    best = stage(rcnn / "checkpoints" / "best.ckpt")
    assert best["svm_fitted"] == 1
    assert (best["svm_weight"].abs().sum(1) > 0).any() and best["ridge_weight"].any()
    (last,) = (rcnn / "checkpoints").glob("last-*.ckpt")
    assert stage(last)["svm_fitted"] == 0, "training goes on from the softmax"
    assert len(list((rcnn.parent / "data" / "proposals").rglob("*.npy"))) == 6 + 5 + 3


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_of_the_checkpoint_is_that_after_fit(rcnn, command, monkeypatch, tmp_path):
    monkeypatch.chdir(rcnn.parent)
    best = str(rcnn / "checkpoints" / "best.ckpt")
    # With other batches: nothing may depend on them.
    arguments = [command, *config("rcnn_alexnet"), "--ckpt_path", best, "--data.eval_batch_size=3"]
    assert main([*arguments, "--run_dir", str(tmp_path)]) == 0
    split = "val" if command == "validate" else "test"
    assert_near(results(tmp_path)[split], results(rcnn)[split], rel=1e-4)


def test_a_run_that_ended_before_its_svms_gets_them_on_resumption(rcnn, monkeypatch, tmp_path):
    """And the same ones: they depend on nothing but the weights and the data."""
    monkeypatch.chdir(rcnn.parent)
    run = tmp_path / "run"
    shutil.copytree(rcnn, run)
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    for name in SVM:
        content["state_dict"][f"network.{name}"].zero_()
    torch.save(content, best)
    best.with_name("best.ckpt.sha256").unlink()
    assert main([*config("rcnn_alexnet"), "--ckpt_path", "last", "--run_dir", str(run)]) == 0
    want = stage(rcnn / "checkpoints" / "best.ckpt")
    for name, value in stage(best).items():
        torch.testing.assert_close(value, want[name], msg=name)
    assert_near(results(run)["test"], results(rcnn)["test"], rel=1e-5)


def test_three_lines_of_python_find_what_the_command_does(rcnn, monkeypatch, tmp_path):
    monkeypatch.chdir(rcnn.parent)
    best = str(rcnn / "checkpoints" / "best.ckpt")
    picture = sorted((rcnn.parent / "data").rglob("images/val/*"))[0]
    detector = load(best, device="cpu", score_threshold=0.0)
    found = detector(picture)
    arguments = ["predict", *config("rcnn_alexnet"), "--ckpt_path", best, "--data.images", str(picture)]
    assert main([*arguments, "--run_dir", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "predictions" / "results.json").read_text())
    assert len(written) == len(found) > 0
    np.testing.assert_allclose([row["score"] for row in written], found.scores, rtol=1e-5)
    boxes = np.array([row["bbox"] for row in written])
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], found.boxes[:, 2:], atol=1e-2)


def test_sppnet_on_two_processes(tmp_path, monkeypatch):
    """One of them fits the SVMs, both test with them."""
    run = tmp_path / "run"
    status, output = finish(train(*config("sppnet_zf5"), "--trainer.devices=2", "--run_dir", str(run)))
    assert status == 0, output
    assert stage(run / "checkpoints" / "best.ckpt")["svm_fitted"] == 1
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["test", *config("sppnet_zf5"), "--ckpt_path", best, "--run_dir", str(tmp_path / "one")]) == 0
    assert_near(results(tmp_path / "one")["test"], results(run)["test"], rel=1e-5)


def test_fast_rcnn_validates_the_same_on_two_processes(fast, monkeypatch, tmp_path):
    monkeypatch.chdir(fast.parent)
    best = str(fast / "checkpoints" / "best.ckpt")
    arguments = ["validate", *config("fast_rcnn_vgg16"), "--ckpt_path", best, "--data.eval_batch_size=1"]
    assert main([*arguments, "--run_dir", str(tmp_path / "one")]) == 0
    status, output = finish(train(*arguments, "--trainer.devices=2", "--run_dir", str(tmp_path / "two")))
    assert status == 0, output
    one = results(tmp_path / "one")["val"]
    assert results(tmp_path / "two")["val"] == one and {"class_loss", "box_loss", "mAP"} <= set(one)


def test_fast_rcnn_with_truncated_layers_from_the_command_line(fast, monkeypatch, tmp_path):
    monkeypatch.chdir(fast.parent)
    best = str(fast / "checkpoints" / "best.ckpt")
    found = {}
    for ranks in ("[256,256]", "[2,1]"):
        arguments = ["test", *config("fast_rcnn_vgg16", f"--model.network.svd_ranks={ranks}"), "--ckpt_path", best]
        assert main([*arguments, "--run_dir", str(tmp_path / ranks)]) == 0
        found[ranks] = results(tmp_path / ranks)["test"]
    whole = results(fast)["test"]
    assert found["[256,256]"]["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert found["[2,1]"]["loss"] != pytest.approx(whole["loss"], rel=1e-4)


def test_recall_of_the_proposals(fast, monkeypatch, capsys):
    monkeypatch.chdir(fast.parent)
    assert proposal_recall.main([*config("fast_rcnn_vgg16"), "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "5 pictures" in said and "val split of shapes" in said
    recall = {line.split()[3]: float(line.split()[4]) for line in said.splitlines() if line.startswith("recall")}
    assert recall["0.5:"] >= recall["0.7:"] >= recall["0.9:"] and recall["0.5:"] > 0.6
    arguments = config("fast_rcnn_vgg16", "--data.proposals=null")
    assert proposal_recall.main([a for a in arguments if "proposals.workers" not in a]) == 2
    assert "no data.proposals" in capsys.readouterr().err


def test_data_keeps_the_proposals_when_it_is_switched(capsys):
    voc = str(ROOT / "configs" / "data" / "voc.yaml")
    arguments = ["--config", str(ROOT / "configs" / "rcnn_alexnet.yaml"), "--data", voc, "--data.augmentation=flip"]
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    said = capsys.readouterr().out
    assert "VocDetection" in said and "SelectiveSearch" in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.augmentation=ssd", "does not carry data.proposals along"),
        ("--data.proposals.cache=/dev/null/x", "--data.proposals.cache"),
        ("--model.network.svd_ranks=[1000,1]", "at most 256"),
    ],
)
def test_mistakes_get_one_line(option, message, capsys):
    assert main(config("fast_rcnn_vgg16", option)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
