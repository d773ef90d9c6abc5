"""RetinaNet and SSD as a user meets them: shipped configurations, parts swapped by name, two processes."""

import json

import pytest
import torch

from models.detection import SSD, RetinaNet
from models.necks import FPN, NASFPN, PAFPN, AugFPN, BiFPN, RecursiveFPN
from tests.helpers import ROOT, SMALL, finish, train
from tests.systems.test_two_stage import network
from train import main

BACKBONE = "--model.network.backbone"
NECK = "--model.network.neck"
TIMM = [BACKBONE, "models.backbones.timm_backbone.TimmBackbone", f"{BACKBONE}.name"]
THIN = {  # less of everything: what is left is the software
    "retinanet_r50_fpn": [*TIMM, "mobilenetv3_small_050", f"{NECK}.channels=16", "--model.network.head.repeats=1",
                          "--model.network.image_size=64", "--data.image_size=64"],
    "ssd300_vgg16": ["--model.network.width=0.03125"],
    "ssd512_vgg16": ["--model.network.width=0.03125"],
}  # fmt: skip


def arguments(name: str) -> list[str]:
    """Of a thin network on a few small pictures."""
    logger = "--trainer.logger=callbacks.loggers.AppendingCSVLogger"
    return ["--config", str(ROOT / "configs" / f"{name}.yaml"), *SMALL, "--data.picture_size=64", *THIN[name], logger]


def train_one_step(detector, side):
    """One step on a batch of two; every parameter that can learn gets a gradient, and detection gives boxes."""
    torch.manual_seed(0)
    targets = {
        "boxes": torch.tensor([[[8.0, 8, 40, 44], [20, 4, 60, 30]], [[0, 0, 33, 50], [0, 0, 0, 0]]]),
        "labels": torch.tensor([[2, 0], [4, -1]]),
        "iscrowd": torch.zeros(2, 2, dtype=torch.bool),
    }
    size = torch.full((2, 2), side)
    images = detector.preprocess(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), size)
    terms = detector.train().loss_terms(detector(images), targets, size)
    sum(term.value() for term in terms.values()).backward()
    assert all(term.value().isfinite() for term in terms.values())
    assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        found = detector.eval().detect(detector(images), size)
    assert found["boxes"].shape[::2] == (2, 4) and found["boxes"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "kind"), [("retinanet_r50_fpn", RetinaNet), ("ssd300_vgg16", SSD), ("ssd512_vgg16", SSD)]
)
def test_shipped_configurations(name, kind):
    detector = network(name)
    assert type(detector) is kind
    train_one_step(detector, 128)


@pytest.mark.parametrize(
    ("neck", "kind"),
    [("FPN", FPN), ("PAFPN", PAFPN), ("BiFPN", BiFPN), ("NASFPN", NASFPN), ("AugFPN", AugFPN)],
)
def test_necks_by_name(neck, kind):
    swapped = network("retinanet_r50_fpn", *TIMM, "mobilenetv3_small_050", NECK, neck)
    assert type(swapped.neck) is kind and swapped.neck.channels == 64  # of the configuration
    train_one_step(swapped, 128)


def test_recursive_fpn_by_name():
    options = [f"{BACKBONE}.switchable_stages=[2, 3]", f"{BACKBONE}.channels=16"]
    swapped = network("retinanet_r50_fpn", BACKBONE, "RecursiveFPN", *options, NECK, "IdentityNeck")
    assert type(swapped.backbone) is RecursiveFPN and swapped.neck.channels == 16
    train_one_step(swapped, 128)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ([*TIMM, "mobilenetv3_large_100"], [40, 112, 960]),
        ([*TIMM, "efficientnet_lite0"], [40, 112, 320]),
        ([f"{BACKBONE}.name=resnet34"], [128, 256, 512]),
    ],
)
def test_backbones_by_name(options, channels):
    swapped = network("retinanet_r50_fpn", *options, f"{NECK}.channels=16")
    assert (swapped.backbone.channels, swapped.backbone.strides) == (channels, [8, 16, 32])
    train_one_step(swapped, 64)


def test_the_papers_ablation_from_the_command_line():
    detector = network(
        "retinanet_r50_fpn", "--model.network.class_loss.gamma=0", "--model.network.class_loss.alpha=.75"
    )
    assert (detector.class_loss.gamma, detector.class_loss.alpha) == (0, 0.75)


@pytest.mark.parametrize("name", ["retinanet_r50_fpn", "ssd300_vgg16"])
def test_validation_prints_the_same_digits_on_two_processes(name, tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    shared = [*arguments(name), "--data.eval_batch_size=1"]  # else pictures in other batches round differently
    assert main([*shared, "--run_dir", str(one)]) == 0
    best = str(one / "checkpoints" / "best.ckpt")
    command = ["validate", *shared, "--ckpt_path", best, "--run_dir", str(two), "--trainer.devices=2"]
    status, output = finish(train(*command))
    assert status == 0, output
    alone, together = (json.loads((run / "results.json").read_text())["val"] for run in (one, two))
    assert together == alone
    assert len(alone) > 15 and alone["loss"] > 0


def test_a_size_that_ssd_is_not_made_for(capsys):
    assert main([*arguments("ssd300_vgg16"), "--data.image_size=64"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "set data.image_size and model.network.image_size to the same number" in error
