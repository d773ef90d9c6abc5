"""The command line as a user meets it: `main([...])` in process, on small generated data."""

import json
import re

import pytest
import torch
import yaml

from tests.helpers import D0, ROOT, SMALL
from train import main

SYSTEMS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted(
    str(path.relative_to(ROOT / "configs"))
    for folder in ("recipes", "debug", "logger")
    for path in (ROOT / "configs" / folder).glob("*.yaml")
)
DATA = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "data").glob("*.yaml"))}
SAMPLE_DATA = {
    "shapes",
    "shapes_segmentation",
    "python_lines",
    "python_topics",
}  # what every machine can make for itself


def config(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.yaml")


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
    monkeypatch.chdir(trained.parent)
    before = json.loads((trained / "results.json").read_text())
    best = str(trained / "checkpoints" / "best.ckpt")
    assert main([command, "--config", D0, *SMALL, "--ckpt_path", best]) == 0
    after = json.loads((trained / "results.json").read_text())
    assert after["val"] == before["val"] and after["test"] == before["test"]


def test_command_line_wins_over_the_checkpoint(trained, monkeypatch, capsys):
    # Lightning since 2.5.5 lets the hyperparameters of a checkpoint win; here they must not.
    monkeypatch.chdir(trained.parent)
    best = str(trained / "checkpoints" / "best.ckpt")
    arguments = ["test", "--config", D0, *SMALL, "--ckpt_path", best]
    assert main([*arguments, "--model.protocol=voc12"]) == 0
    assert "mAR_100" not in json.loads((trained / "results.json").read_text())["test"]
    assert main(arguments) == 0  # as it was, for the other tests


def test_predict_writes_pictures_and_results(trained, tmp_path, monkeypatch):
    pictures = sorted((trained.parent / "data").rglob("images/val/*"))[:2]
    assert pictures
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in pictures:
        (folder / picture.name).write_bytes(picture.read_bytes())
    best = str(trained / "checkpoints" / "best.ckpt")
    out = tmp_path / "out"
    arguments = ["predict", "--config", D0, *SMALL, "--ckpt_path", best]
    assert main([*arguments, "--data.images", str(folder), "--run_dir", str(out)]) == 0
    assert isinstance(json.loads((out / "predictions" / "results.json").read_text()), list)
    assert len(list((out / "predictions").glob("*.[jp][pn]g"))) == 2


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_config_is_valid(name, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--config", config(name), "--print_config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    root = printed["root"] if "root" in printed else printed["corpus"]["init_args"]["root"]
    assert root.removeprefix("data/") in SAMPLE_DATA, f"{name} does not run on sample data"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_valid(overlay, capsys):
    path = ROOT / "configs" / overlay
    base = re.search(r"--config (configs/\w+\.yaml)", path.read_text())  # its header says what it lies over
    with pytest.raises(SystemExit) as end:
        main(["--config", str(ROOT / base[1]) if base else D0, "--config", str(path), "--print_config"])
    assert end.value.code == 0


def test_data_configs_name_the_same_common_arguments():
    # Switching --data keeps what the new file does not name, so each file must name all.
    arguments = {name: data["init_args"] for name, data in DATA.items() if data["class_path"].endswith("Detection")}
    assert len(arguments) > 2
    common = {"image_size", "batch_size", "eval_batch_size", "num_workers", "augmentation", "on_bad_sample"}
    for name, given in arguments.items():
        assert common <= set(given), f"{name} lacks {common - set(given)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model.lr", "1"], "model"),
        (["--trainer.max_epoks", "1"], "max_epoks"),
        (["--trainer.max_epochs", "many"], "many"),
        (["--model.network.variant", "d9"], "d9"),
        (["--data.image_size", "100"], "128"),
        (["--data.batch_size", "0"], "batch_size"),
        (["--ckpt_path", "last"], "leave out --ckpt_path"),
        (["--ckpt_path", "nothing.ckpt"], "nothing.ckpt"),
    ],
)
def test_mistakes_get_one_line_and_status_2(arguments, message, capsys):
    assert main(["--config", D0, *SMALL, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_predict_without_weights_is_refused(capsys):
    assert main(["predict", "--config", D0, *SMALL]) == 2
    assert "--ckpt_path" in capsys.readouterr().err
