import hashlib

import numpy as np
import pytest
import torch

from datamodules import ShapesDetection
from datamodules.detection import find_pictures
from datamodules.recipes import AUGMENTATIONS
from errors import UserError
from tests.datamodules.builders import picture


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"image_size": 0}, r"data\.image_size is 0"),
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
