"""Two-stage detectors as a user meets them: shipped configurations, parts swapped by name, the threshold study."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torchvision.ops import box_iou

from models.detection import CascadeRCNN, Detector, FasterRCNN
from models.detection.roi.cascade import CascadeRoIHead
from models.necks import FPN, NASFPN, PAFPN, AugFPN, BiFPN, RecursiveFPN
from tests.helpers import ROOT, SMALL, finish, train
from tools import iou_threshold_study
from train import main

CONFIGS = ROOT / "configs"
FLAGSHIP = str(CONFIGS / "faster_rcnn_r50_fpn.yaml")
SYSTEMS = [
    "cascade_rcnn_r50_fpn", "detectors_cascade_r50", "faster_rcnn_r50_augfpn", "faster_rcnn_r50_c4",
    "faster_rcnn_r50_fpn", "faster_rcnn_r50_pafpn", "faster_rcnn_vgg16",
]  # fmt: skip
BACKBONE = "--model.network.backbone"
NECK = "--model.network.neck"
TIMM = [BACKBONE, "models.backbones.timm_backbone.TimmBackbone", f"{BACKBONE}.name"]
# Less of everything: what is left is the software.
TINY = [*TIMM, "mobilenetv3_small_050", f"{NECK}.channels=16", "--model.network.roi_head.box_head.width=32"]


def network(name, *arguments):
    """The network of a configuration, with `arguments` as on the command line, but without Lightning's parser."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]["network"]
    config["init_args"]["num_classes"] = 5
    Path("network.yaml").write_text(yaml.safe_dump({"model": {"network": config}}))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--model.network", type=Detector)
    config = parser.parse_args(["--config=network.yaml", *arguments])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    return instantiate(config).model.network


def train_one_step(network, side=64):
    """One step on a batch of two; every parameter that can learn gets a gradient, and detection gives boxes."""
    torch.manual_seed(0)
    targets = {
        "boxes": torch.tensor([[[8.0, 8, 40, 44], [20, 4, 60, 30]], [[0, 0, 33, 50], [0, 0, 0, 0]]]),
        "labels": torch.tensor([[2, 0], [4, -1]]),
        "iscrowd": torch.zeros(2, 2, dtype=torch.bool),
        "area": torch.full((2, 2), 1000.0),
    }
    size = torch.full((2, 2), side)
    images = network.preprocess(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), size)
    terms = network.train().loss_terms(network(images), targets, size)
    sum(term.value() for term in terms.values()).backward()
    assert all(term.value().isfinite() for term in terms.values())
    unused = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    with torch.no_grad():
        found = network.eval().detect(network(images), size)
    assert found["boxes"].shape == (2, 100, 4) and found["boxes"].isfinite().all()


def test_all_configurations_are_listed():
    shipped = {path.stem for path in CONFIGS.glob("*rcnn_*.yaml")} | {p.stem for p in CONFIGS.glob("detectors_*.yaml")}
    assert {name for name in shipped if not name.startswith(("rcnn", "fast_rcnn"))} == set(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_shipped_configurations(name):
    train_one_step(network(name))


@pytest.mark.parametrize(
    ("neck", "kind"),
    [("FPN", FPN), ("PAFPN", PAFPN), ("BiFPN", BiFPN), ("NASFPN", NASFPN), ("AugFPN", AugFPN)],
)
def test_necks_by_name(neck, kind):
    swapped = network("faster_rcnn_r50_fpn", *TIMM, "mobilenetv3_small_050", NECK, neck)
    assert type(swapped.neck) is kind and swapped.neck.channels == 64  # of the configuration
    train_one_step(swapped)


def test_recursive_fpn_by_name():
    options = [f"{BACKBONE}.switchable_stages=[2, 3]", f"{BACKBONE}.channels=16"]
    swapped = network("faster_rcnn_r50_fpn", BACKBONE, "RecursiveFPN", *options, NECK, "IdentityNeck")
    assert type(swapped.backbone) is RecursiveFPN and swapped.neck.channels == 16
    train_one_step(swapped)


@pytest.mark.parametrize(
    ("arguments", "channels"),
    [
        ([*TIMM, "resnet18"], [64, 128, 256, 512]),
        ([*TIMM, "mobilenetv3_large_100"], [24, 40, 112, 960]),
        ([f"{BACKBONE}.name=resnet34"], [64, 128, 256, 512]),
    ],
)
def test_backbones_by_name(arguments, channels):
    swapped = network("faster_rcnn_r50_fpn", *arguments)
    assert (swapped.backbone.channels, swapped.backbone.strides) == (channels, [4, 8, 16, 32])
    train_one_step(swapped)


def test_it_learns():
    torch.manual_seed(0)
    detector = network("faster_rcnn_r50_fpn", f"{NECK}.channels=16", "--model.network.roi_head.box_head.width=64")
    images = torch.randint(0, 60, (2, 3, 64, 64), dtype=torch.uint8)
    images[0, 0, 10:40, 8:36] = 255  # a red box and a blue one
    images[1, 2, 20:52, 30:60] = 255
    targets = {
        "boxes": torch.tensor([[[8.0, 10, 36, 40]], [[30, 20, 60, 52]]]),
        "labels": torch.tensor([[1], [3]]),
        "iscrowd": torch.zeros(2, 1, dtype=torch.bool),
        "area": torch.full((2, 1), 900.0),
    }
    size = torch.full((2, 2), 64)
    pixels = detector.preprocess(images, size)
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        terms = detector.loss_terms(detector(pixels), targets, size)
        loss = sum(term.value() for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    with torch.no_grad():
        found = detector.detect(detector(pixels), size)  # batch statistics, as it was trained
    assert found["labels"][:, 0].tolist() == [1, 3]
    assert (box_iou(found["boxes"][:, 0], targets["boxes"][:, 0]).diagonal() > 0.6).all()


def parameters(kind, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in kind(**options).parameters())


def test_published_numbers_of_parameters():
    assert parameters(FasterRCNN, num_classes=80) == 41_699_936
    # torchvision's 41,755,286 and 43,712,278 have box codes for the background, too: four rows of 1024 and a bias.
    assert parameters(FasterRCNN, num_classes=90, form="torchvision_v1") + 4 * 1025 == 41_755_286
    assert parameters(FasterRCNN, num_classes=90, form="torchvision_v2") + 4 * 1025 == 43_712_278
    assert parameters(CascadeRCNN, num_classes=80) == 69_394_766


def test_published_figures_are_those_of_unchanged_networks():
    with torch.device("meta"):
        assert FasterRCNN(num_classes=81).published["parameters"] == 41_699_936 + 5 * 1025
        assert FasterRCNN(num_classes=80, neck=PAFPN).published == {}
        assert FasterRCNN(num_classes=80, image_size=640).published == {}
        assert CascadeRCNN(num_classes=80, form="detectron2").published == {}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a threshold study that was made, what its trainings were given, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    training = ["--config", FLAGSHIP, *SMALL, *TINY, f"--data.root={folder}/shapes", "--data.image_size=64"]
    training += ["--trainer.logger=false", "--trainer.callbacks=null"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        iou_threshold_study.main(["--folder", str(folder / "study"), *training, "--thresholds", "0.5", "0.7"])
    return folder / "study", training, printed.getvalue()


def test_threshold_study(study):
    folder, _, printed = study
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == [
        "u=0.5", "u=0.7", "u=0.7, cascade's boxes", "u=0.5, objects added", "u=0.7, objects added",
        "u=0.5, iterative box x 1", "u=0.5, iterative box x 2", "u=0.5, iterative box x 3", "integral loss",
        "cascade, stage 1", "cascade, stage 2", "cascade, stage 1~2",
    ]  # fmt: skip
    for row in results.values():
        assert list(row) == ["AP", "AP50", "AP60", "AP70", "AP80", "AP90"]
        assert all(0 <= value <= 1 for value in row.values())  # never -1, at .9 neither
    assert results["u=0.5"] == results["u=0.5, iterative box x 1"] != results["u=0.5, objects added"]
    lines = printed.strip().splitlines()[-len(results) - 1 :]
    assert lines[0].split() == ["AP", "AP50", "AP60", "AP70", "AP80", "AP90"]
    for line, (name, row) in zip(lines[1:], results.items(), strict=True):
        assert line.startswith(name) and line.split()[-6:] == [f"{100 * value:.1f}" for value in row.values()]


def test_what_was_trained_is_not_trained_again(study, monkeypatch):
    folder, training, _ = study
    monkeypatch.setattr(iou_threshold_study, "Training", None)
    stage = iou_threshold_study.second_stages([0.5, 0.7])["cascade"]
    network = iou_threshold_study.trained(folder / "cascade", [*training, *stage]).model.network
    state = torch.load(folder / "cascade" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[f"network.{name}"])
    assert not network.training


def test_threshold_study_changes_the_second_stage_alone():
    stages = iou_threshold_study.second_stages([0.5, 0.6, 0.7])
    single, cascade = (network("faster_rcnn_r50_fpn", *TINY, *stages[name]) for name in ("u=0.6", "cascade"))
    assert single.roi_head.positive_iou == 0.6
    assert isinstance(cascade.roi_head, CascadeRoIHead) and cascade.roi_head.positive_ious == (0.5, 0.6, 0.7)
    assert [coder.weights for coder in cascade.roi_head.coders][2] == (30, 30, 15, 15)
    assert cascade.roi_head.loss_weights == (1, 0.5, 0.25)
    for head in (single.roi_head, cascade.roi_head):  # as the configuration says
        assert (head.sampler.size, head.extractor.canonical_size) == (64, 56)
    assert cascade.roi_head.stages[0].box_head.channels == single.roi_head.box_head.channels == 32


def test_two_processes_find_the_same(study, tmp_path):
    folder, training, _ = study
    command = ["validate", *training, *iou_threshold_study.second_stages([0.5])["u=0.5"], "--data.eval_batch_size=1"]
    command += ["--ckpt_path", str(folder / "u=0.5" / "checkpoints" / "best.ckpt")]
    assert main([*command, "--run_dir", str(tmp_path / "1")]) == 0
    status, output = finish(train(*command, "--trainer.devices=2", "--run_dir", str(tmp_path / "2")))
    assert status == 0, output
    one, two = (json.loads((tmp_path / run / "results.json").read_text())["val"] for run in ("1", "2"))
    assert one == two
    assert {"mAP", "rpn_class_loss", "box_loss"} <= set(one)
