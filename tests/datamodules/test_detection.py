import hashlib

import numpy as np
import pytest
import torch

from datamodules import CocoDetection, ShapesDetection
from datamodules.detection import find_pictures
from datamodules.recipes import AUGMENTATIONS
from errors import UserError
from tests.datamodules.builders import annotation, coco, picture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shapes"))


def shapes(root, **options):
    small = {"train_images": 12, "val_images": 5, "test_images": 4, "image_size": 96, "batch_size": 4}
    return ShapesDetection(root=root, **(small | options))


def digest(batches):
    state = hashlib.sha256()
    for batch in batches:
        for value in (batch["image"], batch["index"], batch["targets"]["boxes"], batch["targets"]["labels"]):
            state.update(value.numpy().tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("augmentation", ["efficientdet", "mosaic"])
def test_pixels_do_not_depend_on_workers(root, augmentation):
    transforms = [{"class_path": "ColorJitter", "init_args": {"p": 0.8}}]
    digests = set()
    for workers in (0, 1, 2):
        loader = shapes(root, num_workers=workers, augmentation=augmentation, transforms=transforms).train_dataloader()
        digests.add(digest([*loader, *loader]))
    assert len(digests) == 1


def test_seed_and_epoch_change_pixels(root):
    loader = shapes(root).train_dataloader()
    first, second = digest(loader), digest(loader)
    assert first != second
    assert digest(shapes(root, seed=1).train_dataloader()) != first
    assert digest(shapes(root).train_dataloader()) == first


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_keeps_the_contract(root, name):
    data = shapes(root, augmentation=name)
    for batch in data.train_dataloader():
        targets = batch["targets"]
        assert batch["image"].shape == (4, 3, 96, 96) and batch["image"].dtype == torch.uint8
        assert targets["boxes"].dtype == torch.float32 and targets["labels"].dtype == torch.int64
        assert targets["boxes"].shape[1] % 8 == 0
        real = targets["labels"] >= 0
        boxes = targets["boxes"][real]
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        limit = batch["image_size"].flip(1)[:, None].expand(-1, real.shape[1], -1)[real]
        assert (boxes[:, 2:] <= limit + 1e-3).all()
        assert targets["labels"].max() < data.num_classes


def test_evaluation_targets_map_back_to_the_file(root):
    data = shapes(root)
    truth = data.annotations("val")
    for batch in data.val_dataloader():
        for i, index in enumerate(batch["index"].tolist()):
            labels = batch["targets"]["labels"][i]
            boxes = batch["targets"]["boxes"][i][labels >= 0] / batch["scale"][i].repeat(2)
            np.testing.assert_allclose(boxes, truth.training_targets(index)["boxes"], atol=1e-3)
            assert batch["original_size"][i].tolist() == [truth.heights[index], truth.widths[index]]


def test_sample_data_is_deterministic_and_made_once(root, tmp_path):
    first, second = shapes(root), shapes(str(tmp_path))
    assert first.fingerprint == second.fingerprint
    files = sorted(first.folder.rglob("*.jpg"))
    assert len(files) == 21
    times = [file.stat().st_mtime_ns for file in files]
    assert [(tmp_path / first.folder.name / f.relative_to(first.folder)).read_bytes() for f in files] == [
        f.read_bytes() for f in files
    ]
    _ = shapes(root).fingerprint
    assert [file.stat().st_mtime_ns for file in files] == times
    assert shapes(root, picture_seed=1).fingerprint != first.fingerprint


def test_sample_data_knows_its_classes_without_being_made(tmp_path):
    data = shapes(str(tmp_path / "none"))
    assert data.num_classes == 5 and not (tmp_path / "none").exists()


def test_objects_of_the_sample_data_are_visible_parts(root):
    truth = shapes(root).annotations("train")
    assert len(truth.boxes) > 12 and (truth.area > 0).all()
    assert (truth.area <= truth.boxes[:, 2] * truth.boxes[:, 3]).all()


def broken(tmp_path, **options):
    names = [f"{i}.jpg" for i in range(4)]
    for i, name in enumerate(names):
        picture(tmp_path / "images" / name, seed=i)
    file = tmp_path / "images" / "2.jpg"
    images = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)]
    coco(tmp_path, images=images, annotations=[annotation(image_id=i) for i in range(4)])
    file.write_bytes(file.read_bytes()[:200])
    arguments = {
        "train_annotations": "instances.json", "train_images": "images",
        "val_annotations": "instances.json", "val_images": "images",
        "image_size": 64, "batch_size": 4, "augmentation": "none",
    }  # fmt: skip
    return CocoDetection(root=str(tmp_path), **(arguments | options))


def test_bad_picture_stops_the_run_by_default(tmp_path):
    with pytest.raises(UserError, match=r"2\.jpg: cannot be decoded.*on_bad_sample"):
        list(broken(tmp_path).train_dataloader())


def test_bad_picture_is_skipped_on_request(tmp_path, caplog):
    data = broken(tmp_path, on_bad_sample="skip", shuffle=False)
    (batch,) = data.train_dataloader()
    assert torch.equal(batch["image"][2], batch["image"][3])  # the next one, everywhere and always
    assert "2.jpg" in caplog.text and "left out" in caplog.text
    (batch,) = data.val_dataloader()
    assert not batch["image"][2].any() and batch["index"].tolist() == [0, 1, 2, 3]  # its objects count as missed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"augmentation": "strong"}, r"data\.augmentation is 'strong'; choose one of none, flip"),
    ],
)
def test_bad_options(root, options, message):
    with pytest.raises(UserError, match=message):
        shapes(root, **options)


def test_pictures_to_predict_on(tmp_path):
    for name in ("b.png", "a.jpg", "deep/c.JPG"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    names = ["a.jpg", "b.png", "c.JPG"]
    assert [p.rsplit("/", 1)[1] for p in find_pictures(str(tmp_path))] == names
    assert find_pictures(str(tmp_path / "*.png")) == [str(tmp_path / "b.png")]
    for nothing, message in ((None, "--data.images"), (str(tmp_path / "*.gif"), "no pictures found")):
        with pytest.raises(UserError, match=message):
            find_pictures(nothing)


def test_predict_batches_hold_every_picture_once(root, tmp_path):
    for i in range(5):
        picture(tmp_path / f"{i}.jpg", width=40 + i)
    data = shapes(root, images=str(tmp_path))
    batches = list(data.predict_dataloader())
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(5))
    assert batches[0]["original_size"][1].tolist() == [30, 41]
