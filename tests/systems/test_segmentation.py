"""Segmentation as a user meets it: `main([...])` in process, on small generated data and tiny networks."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from callbacks.segmentation_visualisation import SegmentationVisualisation
from datamodules.segmentation.masks import voc_palette
from tests.helpers import ROOT, SMALL, finish, last_checkpoint, train
from train import main

CONFIGS = ROOT / "configs"
TINY = [
    *SMALL,
    "--data.picture_size=48",
    "--data.crop_size=32",
    "--trainer.logger=callbacks.loggers.AppendingCSVLogger",
]
METRICS = {"loss", "mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU", "IoU/background"}


def fcn(name: str, *options: str) -> list[str]:
    """Arguments of a staged FCN at a thirty-second of VGG16's width, on tiny pictures."""
    return ["--config", str(CONFIGS / f"{name}.yaml"), *TINY, "--model.network.backbone.width=0.03125", *options]


def results(run) -> dict:
    return json.loads((run / "results.json").read_text())


def evaluated(run, *arguments: str) -> dict:
    """What a validation of some arguments measures."""
    assert main(["validate", *arguments, "--run_dir", str(run)]) == 0
    return results(run)["val"]


@pytest.fixture(scope="module")
def fcn32s(tmp_path_factory):
    """The run directory of a short training of FCN-32s, in a folder that also holds its sample data."""
    folder = tmp_path_factory.mktemp("fcn32s")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        steps = ["--trainer.max_epochs=10", "--trainer.limit_train_batches=3", "--trainer.check_val_every_n_epoch=10"]
        arguments = fcn("fcn32s_vgg16", *steps, "--model.schedule.warmup_steps=0", "--run_dir", str(folder / "run"))
        assert main(arguments) == 0
    return folder / "run"


@pytest.fixture
def beside(fcn32s, monkeypatch):
    """Work where the sample data is; the checkpoint."""
    monkeypatch.chdir(fcn32s.parent)
    return str(fcn32s / "checkpoints" / "best.ckpt")


def test_fit_leaves_a_complete_run_directory(fcn32s):
    found = results(fcn32s)
    assert found["checkpoint"].endswith("best.ckpt") and found["data"]["name"] == "shapes_segmentation"
    assert set(found["val"]) & set(found["test"]) >= METRICS
    assert {file.name for file in (fcn32s / "figures").glob("*.png")} == {"class_iou.png", "confusion_matrix.png"}
    sheet = Image.open(next((fcn32s / "images").glob("*.png")))
    assert min(sheet.size) > 100
    rows = list(csv.DictReader((fcn32s / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[0] == pytest.approx(math.log(6), rel=1e-5), "zero scores give six classes the same probability"
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_does_not_depend_on_the_batch(beside, fcn32s, tmp_path, batch_size):
    arguments = fcn("fcn32s_vgg16", f"--data.eval_batch_size={batch_size}", "--ckpt_path", beside)
    assert main(["test", *arguments, "--run_dir", str(tmp_path)]) == 0
    before, after = results(fcn32s)["test"], results(tmp_path)["test"]
    assert after.keys() == before.keys()
    assert {k: v for k, v in after.items() if "IoU" in k or "acc" in k} == {
        k: v for k, v in before.items() if "IoU" in k or "acc" in k
    }
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)


def test_two_processes_measure_the_same(beside, fcn32s, tmp_path):
    arguments = fcn("fcn32s_vgg16", "--data.eval_batch_size=1", "--ckpt_path", beside)
    alone = evaluated(tmp_path / "1", *arguments)
    status, output = finish(train("validate", *arguments, "--trainer.devices=2", "--run_dir", str(tmp_path / "2")))
    assert status == 0, output
    assert results(tmp_path / "2")["val"] == alone


def test_the_chain_of_stages(beside, fcn32s, tmp_path):
    """FCN-16s begins where FCN-32s ended, and FCN-8s where FCN-16s did: new skips add nothing at first."""
    coarse = results(fcn32s)["val"]["loss"]
    assert coarse < 0.9 * math.log(6)
    begun = evaluated(tmp_path / "begun", *fcn("fcn16s_vgg16", "--model.weights", beside))
    assert begun["loss"] == pytest.approx(coarse, rel=0.05)
    assert main(fcn("fcn16s_vgg16", "--model.weights", beside, "--run_dir", str(tmp_path / "16"))) == 0
    middle = str(tmp_path / "16" / "checkpoints" / "best.ckpt")
    begun = evaluated(tmp_path / "8", *fcn("fcn8s_vgg16", "--model.weights", middle))
    assert begun["loss"] == pytest.approx(results(tmp_path / "16")["val"]["loss"], rel=0.05)


@pytest.mark.parametrize("how", [
    [],
    ["--model.inference=models.segmentation.inference.Sliding", "--model.inference.window=32",
     "--model.inference.stride=20"],
    ["--model.inference=models.segmentation.inference.MultiScale", "--model.inference.scales=[0.75, 1.0]"],
])  # fmt: skip
def test_predict_writes_masks_that_inference_agrees_with(beside, fcn32s, tmp_path, how):
    files = sorted(fcn32s.parent.rglob("JPEGImages/val_*.jpg"))[:2]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    arguments = ["predict", *fcn("fcn32s_vgg16"), "--ckpt_path", beside, "--data.images", str(folder), *how]
    assert main([*arguments, "--run_dir", str(tmp_path / "out")]) == 0
    segmenter = inference.load(beside, device="cpu")
    for file in files:
        mask = Image.open(tmp_path / "out" / "predictions" / "masks" / f"{file.stem}.png")
        assert mask.mode == "P" and mask.size == Image.open(file).size
        assert mask.getpalette()[:18] == voc_palette()[:6].ravel().tolist()
        assert (tmp_path / "out" / "predictions" / f"{file.stem}.jpg").exists()
        labels = np.array(mask)
        assert labels.max() < 6
        if not how:
            np.testing.assert_array_equal(segmenter(file).labels, labels)


def test_the_papers_optimiser_groups(tmp_path):
    """Biases learn twice as fast and do not decay; the bilinear kernels stay as they are."""
    arguments = ["--config", str(CONFIGS / "fcn8s_vgg16.yaml"), "--config", str(CONFIGS / "recipes" / "fcn_voc.yaml"),
                 *TINY, "--model.network.backbone.width=0.03125", "--model.network.backbone.pretrained=false",
                 "--data.crop_size=32", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
                 "--last_checkpoint.every_n_train_steps=1", "--run_dir", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=True)
    kernels, biases = checkpoint["optimizer_states"][0]["param_groups"]
    state = checkpoint["state_dict"]
    upsampling = [name for name in state if ".upsampling." in name]
    assert len(kernels["params"]) + len(biases["params"]) == len(state) - len(upsampling)
    assert len(biases["params"]) == sum(name.endswith(".bias") for name in state) == 13 + 2 + 3
    assert (kernels["lr"], kernels["weight_decay"], kernels["momentum"]) == (1e-10, 5e-4, 0.99)
    assert (biases["lr"], biases["weight_decay"], biases["momentum"]) == (2e-10, 0.0, 0.99)


DECODER = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, in_channels, num_classes, *, feature=-1):
        super().__init__()
        self.feature = feature
        self.score = nn.Conv2d(in_channels[feature], num_classes, 1)

    def forward(self, features):
        return self.score(features[self.feature])

    def class_parameters(self):
        return ["score.weight", "score.bias"]
"""


def test_a_backbone_of_timm_and_a_decoder_of_ones_own(tmp_path, monkeypatch):
    """One file and one configuration; nothing else knows of it."""
    (tmp_path / "my_decoder.py").write_text(DECODER)
    (tmp_path / "mine.yaml").write_text(
        f"""
model:
  class_path: lightning_modules.SegmentationModule
  init_args:
    network:
      class_path: models.segmentation.EncoderDecoder
      init_args:
        backbone:
          class_path: models.backbones.timm_backbone.TimmBackbone
          init_args: {{name: mobilenetv3_small_050, out_indices: [2, 4], output_stride: 16}}
        decoder:
          class_path: my_decoder.Tiny
        losses:
          - class_path: models.segmentation.losses.OhemCrossEntropy
          - class_path: models.segmentation.losses.DiceLoss
            init_args: {{weight: 0.5}}
    lr_factors: {{"*.bias": 2}}
    boundary: true
data: {CONFIGS / "data" / "shapes_segmentation.yaml"}
best_checkpoint: {{monitor: val/mIoU}}
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["--config", str(tmp_path / "mine.yaml"), *TINY, "--run_dir", str(tmp_path / "run")]) == 0
    found = results(tmp_path / "run")["test"]
    assert {"ohem_cross_entropy", "dice_loss", "boundary_mIoU"} <= set(found)


def test_folders_of_ones_own(tmp_path):
    """Pictures and masks as CamVid has them: numbers in gray, 11 for what counts nowhere."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            labels = rng.integers(12, size=(5, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            for kind, array in ((split, (20 * labels)[..., None].repeat(3, 2)), (f"{split}annot", labels)):
                (tmp_path / kind).mkdir(exist_ok=True)
                Image.fromarray(array).save(tmp_path / kind / f"{name}.png")
    small = [option for option in TINY if "_images=" not in option and "picture_size" not in option]
    arguments = ["--config", str(CONFIGS / "lraspp_mobilenet_v3.yaml"), "--data", str(CONFIGS / "data" / "camvid.yaml"),
                 *small, "--data.root", str(tmp_path), "--data.num_workers=0"]  # fmt: skip
    assert main([*arguments, "--run_dir", str(tmp_path / "run")]) == 0
    found = results(tmp_path / "run")["val"]
    assert "IoU/Bicyclist" in found and not any("11" in key for key in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.network.stride", "4"], "4"),
        (["--model.network.backbone.padding", "60"], "enlarge its backbone's padding"),
        (["--model.weights", "nothing.ckpt"], "nothing.ckpt"),
        (["--data.crop_size", "0"], "crop_size"),
        (["--model.lr_factors", "{'*.offset': 2}"], "'*.offset', which no parameter's name matches"),
    ],
)
def test_mistakes_get_one_line_and_status_2(arguments, message, capsys):
    assert main([*fcn("fcn32s_vgg16"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_pictures_to_show_are_spread_over_the_split():
    chosen = SegmentationVisualisation(num_images=4).choose(None, np.arange(1, 101, 3))
    assert chosen.tolist() == [1, 34, 67, 100]
    assert SegmentationVisualisation(num_images=8).choose(None, np.arange(3)).tolist() == [0, 1, 2]
