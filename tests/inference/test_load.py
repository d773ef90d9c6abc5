import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from errors import UserError
from inference import load
from models.detection import EfficientDet

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
    for network in (
        {"class_path": "payload.Network"},
        {"class_path": "os.system", "init_args": {"command": "touch stolen.txt"}},
        nested,
    ):
        model = {"class_path": "lightning_modules.DetectionModule", "init_args": {"network": network}}
        torch.save({"state_dict": {}, "triptych": {"config": {"model": model}, "data": DATA}}, tmp_path / "named.ckpt")
        with pytest.raises(UserError, match=r"no part of a model; it was not loaded"):
            load(tmp_path / "named.ckpt")
    assert not list(tmp_path.glob("stolen*"))


def test_parts_are_built_from_the_configuration(tmp_path):
    network = {
        "class_path": "models.detection.EfficientDet",
        "init_args": {
            "postprocessor": {
                "class_path": "models.detection.postprocess.Postprocessor",
                "init_args": {"nms": {"class_path": "models.detection.nms.SoftNMS", "init_args": {}}},
            }
        },
    }
    model = {"class_path": "lightning_modules.DetectionModule", "init_args": {"network": network}}
    weights = {f"network.{key}": value for key, value in EfficientDet(num_classes=2).state_dict().items()}
    torch.save({"state_dict": weights, "triptych": {"config": {"model": model}, "data": DATA}}, tmp_path / "a.ckpt")
    assert type(load(tmp_path / "a.ckpt").network.postprocessor.nms).__name__ == "SoftNMS"
