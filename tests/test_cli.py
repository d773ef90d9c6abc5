"""The command line as a user meets it: `main([...])` in process, on small generated data."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from train import main

ROOT = Path(__file__).parent.parent
SYSTEMS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
DATA = sorted(path.name for path in (ROOT / "configs" / "data").glob("*.yaml"))

# Few and small pictures, two optimiser steps: enough to run every line.
SMALL = [
    "--data.train_images=6", "--data.val_images=3", "--data.test_images=3", "--data.batch_size=2",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
    "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
    "--trainer.num_sanity_val_steps=0",
]  # fmt: skip


def config(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The run directory of a short training of EfficientDet-D0."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trained")
        patch.chdir(folder)
        assert main(["--config", config("efficientdet_d0"), *SMALL]) == 0
        (run,) = (folder / "runs" / "efficientdet_d0").iterdir()
        yield run


def test_fit_leaves_a_complete_run_directory(trained):
    assert (trained / "config.yaml").exists()
    assert (trained / "checkpoints" / "best.ckpt").exists()
    assert list((trained / "images").glob("*.png"))
    assert list((trained / "figures").glob("*.png"))
    header = (trained / "metrics.csv").read_text().splitlines()[0]
    assert "train/loss" in header and "val/mAP" in header
    results = json.loads((trained / "results.json").read_text())
    assert results["checkpoint"].endswith("best.ckpt")
    assert results["data"]["name"] and results["data"]["fingerprint"]
    assert {"loss", "mAP", "mAP_50", "mAR_100"} <= set(results["val"]) & set(results["test"])


def test_saved_config_reproduces_the_run(trained, capsys):
    assert main(["--config", str(trained / "config.yaml"), "--trainer.fast_dev_run=true"]) == 0


def test_checkpoint_is_plain_data(trained):
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    block = checkpoint["triptych"]
    assert json.loads(json.dumps(block)) == block
    assert block["data"]["class_names"]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_of_a_checkpoint_equals_the_one_after_fit(trained, command, monkeypatch):
    monkeypatch.chdir(trained.parent.parent.parent)
    before = json.loads((trained / "results.json").read_text())
    best = str(trained / "checkpoints" / "best.ckpt")
    assert main([command, "--config", config("efficientdet_d0"), *SMALL, "--ckpt_path", best]) == 0
    after = json.loads((trained / "results.json").read_text())
    assert after == {**before, "checkpoint": after["checkpoint"]}


def test_command_line_wins_over_the_checkpoint(trained, monkeypatch, capsys):
    # Lightning since 2.5.5 lets the hyperparameters of a checkpoint win; here they must not.
    monkeypatch.chdir(trained.parent.parent.parent)
    best = str(trained / "checkpoints" / "best.ckpt")
    arguments = ["test", "--config", config("efficientdet_d0"), *SMALL, "--ckpt_path", best]
    assert main([*arguments, "--model.protocol=voc12"]) == 0
    results = json.loads((trained / "results.json").read_text())["test"]
    assert "mAR_100" not in results or results["mAP_50"] is not None
    assert main(arguments) == 0  # as it was, for the other tests


def test_predict_writes_pictures_and_results(trained, tmp_path, monkeypatch):
    pictures = sorted((trained.parent.parent.parent / "data").rglob("images/val/*"))[:2]
    assert pictures
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in pictures:
        (folder / picture.name).write_bytes(picture.read_bytes())
    best = str(trained / "checkpoints" / "best.ckpt")
    out = tmp_path / "out"
    arguments = ["predict", "--config", config("efficientdet_d0"), *SMALL, "--ckpt_path", best]
    assert main([*arguments, "--data.images", str(folder), "--run_dir", str(out)]) == 0
    assert isinstance(json.loads((out / "predictions" / "results.json").read_text()), list)
    assert len(list((out / "predictions").glob("*.[jp][pn]g"))) == 2


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_built_from_its_config(name):
    assert main(["--config", config(name), "--print_config"]) == 0


def test_data_configs_name_the_same_common_arguments():
    # Switching --data keeps what the new file does not name, so each file must name all.
    arguments = {name: yaml.safe_load((ROOT / "configs" / "data" / name).read_text())["init_args"] for name in DATA}
    common = {"image_size", "batch_size", "eval_batch_size", "num_workers", "augmentation", "on_bad_sample"}
    for name, given in arguments.items():
        assert common <= set(given), f"{name} lacks {common - set(given)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model.lr", "1"], "model"),
        (["--trainer.max_epoch", "1"], "max_epoch"),
        (["--trainer.max_epochs", "many"], "many"),
        (["--model.network.variant", "d9"], "d9"),
        (["--data.image_size", "100"], "128"),
        (["--data.batch_size", "0"], "batch_size"),
        (["--ckpt_path", "last"], "leave out --ckpt_path"),
        (["--ckpt_path", "nothing.ckpt"], "nothing.ckpt"),
    ],
)
def test_mistakes_get_one_line_and_status_2(arguments, message, capsys):
    assert main(["--config", config("efficientdet_d0"), *SMALL, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_predict_without_weights_is_refused(capsys):
    assert main(["predict", "--config", config("efficientdet_d0"), *SMALL]) == 2
    assert "--ckpt_path" in capsys.readouterr().err
