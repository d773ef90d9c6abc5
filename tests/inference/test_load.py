import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from errors import UserError
from inference import load
from models.detection import EfficientDet
from tests.helpers import D0, SMALL
from train import main

DATA = {
    "task": "detection", "name": "x", "fingerprint": "f", "image_size": 128,
    "class_names": ["cat", "dog"], "category_ids": [7, 90],
}  # fmt: skip


def spec(**changes):
    network = {
        "class_path": "models.detection.EfficientDet",
        "init_args": {"variant": "d0", "pretrained_backbone": True},
    }
    return {"class_path": "lightning_modules.DetectionModule", "init_args": {"network": network | changes}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Untrained weights, as train.py would have written them: boxes everywhere, but always the same."""
    torch.manual_seed(0)
    network = EfficientDet(num_classes=2)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    torch.save({"state_dict": state, "triptych": {"format": 1, "config": {"model": spec()}, "data": DATA}}, path)
    return path


@pytest.fixture(scope="module")
def detector(checkpoint):
    return load(checkpoint, score_threshold=0.0)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_every_kind_of_picture_gives_the_same(detector, tmp_path):
    image = noise(60, 90)
    Image.fromarray(image).save(tmp_path / "x.png")
    kinds = [
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        image,
        Image.fromarray(image),
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
    ]
    results = [detector(kind) for kind in kinds]
    for result in results[1:]:
        np.testing.assert_array_equal(result.boxes, results[0].boxes)
    together = detector(kinds)
    assert isinstance(together, list) and len(together) == 5
    np.testing.assert_allclose(together[2].scores, results[0].scores, rtol=1e-5)


def test_pictures_of_other_modes_are_as_their_files(detector, tmp_path):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8), "RGBA")
    turned = Image.fromarray(noise(40, 60))
    turned.getexif()[0x0112] = 6
    for name, picture in (
        ("rgba", rgba),
        ("palette", Image.fromarray(noise(40, 60)).quantize(16)),
        ("gray", Image.fromarray(noise(40, 60)).convert("L")),
        ("turned", turned),
    ):
        path = tmp_path / f"{name}.png"
        picture.save(path, exif=picture.getexif())
        result = detector(path)
        np.testing.assert_array_equal(result.image, detector(picture).image, err_msg=name)
        assert result.image.shape == ((60, 40, 3) if name == "turned" else (40, 60, 3))


def test_views_of_arrays(detector):
    bgr = noise(60, 90)[::2, :, ::-1]  # as OpenCV's pictures are turned to RGB
    np.testing.assert_array_equal(detector(bgr).boxes, detector(bgr.copy()).boxes)


def test_boxes_are_in_pixels_of_the_picture(detector):
    small, large = detector(noise(64, 128)), detector(np.kron(noise(64, 128), np.ones((4, 4, 1), np.uint8)))
    for result, (height, width) in ((small, (64, 128)), (large, (256, 512))):
        assert (result.boxes >= 0).all() and (result.boxes <= [width, height, width, height]).all()
    assert large.boxes.max() > 256
    # Shrinking the enlarged picture gives the small one back, so that the boxes are four times as large.
    np.testing.assert_allclose(large.boxes[:20] / 4, small.boxes[:20], atol=0.05)


def test_result(detector, tmp_path):
    result = detector(noise(100, 50))
    assert set(result.class_names) <= {"cat", "dog"} and len(result) == len(result.scores) > 0
    assert (np.diff(result.scores) <= 0).all()
    rows = result.to_coco("x")
    assert rows[0]["category_id"] in (7, 90) and rows[0]["image_id"] == "x"
    x, y, w, h = rows[0]["bbox"]
    np.testing.assert_allclose([x, y, x + w, y + h], result.boxes[0], rtol=1e-6)
    result.save(tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").width >= 50
    assert repr(result).startswith("DetectionResult(") and ("cat" in repr(result) or "dog" in repr(result))


def test_threshold(checkpoint):
    assert len(load(checkpoint, score_threshold=0.9)(noise(64, 64))) == 0


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 10, 10), np.uint8), r"must be \(H, W, 3\) uint8 RGB, not \(3, 10, 10\)"),
        (np.zeros((10, 10, 3), np.float32), r"float32"),
        (np.zeros((0, 10, 3), np.uint8), r"\(0, 10, 3\)"),
        (Image.new("I;16", (10, 10)), r"mode I;16 has more than 8 bits"),
        (torch.zeros(10, 10, 3, dtype=torch.uint8), r"must be \(3, H, W\)"),
        (5, r"not a int"),
        ("nowhere.jpg", r"nowhere\.jpg: cannot be read"),
    ],
)
def test_wrong_pictures(detector, picture, message):
    with pytest.raises(UserError, match=message):
        detector(picture)


def test_wrong_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.ckpt: no such checkpoint"):
        load(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"text\.ckpt: (cannot be read as|the) checkpoint"):
        load(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"foreign\.ckpt: was not written by train\.py"):
        load(tmp_path / "foreign.ckpt")


def test_damaged_file(checkpoint, tmp_path):
    copy = tmp_path / "best.ckpt"
    content = bytearray(checkpoint.read_bytes())
    (tmp_path / "best.ckpt.sha256").write_text(hashlib.sha256(content).hexdigest())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.ckpt: the checkpoint is damaged"):
        load(copy)


class Evil:
    def __reduce__(self):
        return (open, ("stolen.txt", "w"))


def test_malicious_files_do_nothing(tmp_path):
    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "pickle.ckpt")
    with pytest.raises(UserError, match=r"cannot be read as a checkpoint"):
        load(tmp_path / "pickle.ckpt")
    (tmp_path / "payload.py").write_text("open('stolen.txt', 'w')")
    nested = {"class_path": "models.detection.EfficientDet", "init_args": {"box_loss": {"class_path": "payload.X"}}}
    url = (tmp_path / "pickle.ckpt").as_uri()
    for network in (
        {"class_path": "payload.Network"},
        {"class_path": "os.system", "init_args": {"command": "touch stolen.txt"}},
        {"class_path": "models.detection.weights.load_weights", "init_args": {"source": url}},  # ours, but no class
        {"class_path": "models.checkpoint_file.Path", "init_args": {}},  # merely imported there
        {"class_path": "torch.nn.Parameter", "init_args": {}},  # no module
        nested,
    ):
        model = {"class_path": "lightning_modules.DetectionModule", "init_args": {"network": network}}
        torch.save({"state_dict": {}, "triptych": {"config": {"model": model}, "data": DATA}}, tmp_path / "named.ckpt")
        with pytest.raises(UserError, match=r"no part of a model; it was not loaded"):
            load(tmp_path / "named.ckpt")
    assert not list(tmp_path.glob("stolen*"))


def write(path, network, weights):
    model = {"class_path": "lightning_modules.DetectionModule", "init_args": {"network": network}}
    state = {f"network.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": state, "triptych": {"config": {"model": model}, "data": DATA}}, path)
    return path


def test_parts_are_built_from_the_configuration(tmp_path):
    nms = {"class_path": "models.detection.postprocessing.nms.SoftNMS", "init_args": {}}
    postprocessor = {
        "class_path": "models.detection.postprocessing.postprocess.Postprocessor",
        "init_args": {"nms": nms},
    }
    network = {"class_path": "models.detection.EfficientDet", "init_args": {"postprocessor": postprocessor}}
    path = write(tmp_path / "a.ckpt", network, EfficientDet(num_classes=2).state_dict())
    assert type(load(path).network.postprocessor.nms).__name__ == "SoftNMS"


def test_parts_that_the_network_completes(tmp_path, detector):
    """EfficientDet-D0 written out: neck and head get their first arguments from the network."""

    def part(name, /, **arguments):
        return {"class_path": f"models.{name}", "init_args": arguments}

    network = part(
        "detection.one_stage.OneStageDetector",
        image_size=512,
        backbone=part("backbones.timm_backbone.TimmBackbone", name="tf_efficientnet_b0", pretrained=True),
        neck=part("necks.bifpn.BiFPN", channels=64, num_levels=5, repeats=3),
        head=part("detection.dense_heads.efficientdet_head.EfficientDetHead", repeats=3),
        anchors=part("detection.anchors.AnchorGenerator", strides=[8, 16, 32, 64, 128], scale=4),
        matcher=part("detection.matcher.Matcher"),
        box_coder=part("detection.box_coder.BoxCoder"),
        class_loss=part("detection.losses.focal_loss.FocalLoss"),
        box_loss=part("detection.losses.huber_loss.HuberLoss"),
        postprocessor=part("detection.postprocessing.postprocess.Postprocessor"),
    )
    path = write(tmp_path / "a.ckpt", network, detector.network.state_dict())
    np.testing.assert_array_equal(load(path, score_threshold=0.0)(noise(60, 90)).boxes, detector(noise(60, 90)).boxes)


def test_a_network_of_another_version(tmp_path, detector):
    weights = detector.network.state_dict()
    for name, arguments in (("EfficientDet", {"variant": "d1"}), ("EfficientDet", {"depth": 3}), ("Unknown", {})):
        network = {"class_path": f"models.detection.{name}", "init_args": arguments}
        with pytest.raises(UserError, match=r"a\.ckpt: its network is another one in this version"):
            load(write(tmp_path / "a.ckpt", network, weights))


def test_checkpoint_of_a_training_predicts_as_the_command_line(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    torch.manual_seed(0)
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    # After two steps all scores are all but equal, and which box comes first a matter of rounding: take a network that
    # makes differences.
    network = EfficientDet(num_classes=5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network(torch.randn(2, 3, 128, 128))
    network.head.class_net.predict.pointwise.weight.data /= 10
    content["state_dict"] = {f"network.{key}": value for key, value in network.state_dict().items()}
    best = tmp_path / "decided.ckpt"
    torch.save(content, best)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(noise(60 + 10 * i, 90, i)).save(folder / f"{i}.png")
    command = ["predict", "--config", D0, *SMALL, "--ckpt_path", str(best), "--data.images", str(folder)]
    assert main([*command, "--run_dir", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "predictions" / "results.json").read_text())
    pictures = sorted(folder.iterdir())
    results = load(best, device="cpu", score_threshold=0.0)(pictures)
    for image_id, result in zip("012", results, strict=True):
        theirs = [row for row in written if row["image_id"] == image_id][:20]
        ours = result.to_coco(image_id)[:20]
        assert ours[0]["score"] > 1.2 * ours[-1]["score"]
        for a, b in zip(ours, theirs, strict=True):
            assert a["category_id"] == b["category_id"]
            np.testing.assert_allclose([*a["bbox"], a["score"]], [*b["bbox"], b["score"]], rtol=1e-3, atol=1e-2)
