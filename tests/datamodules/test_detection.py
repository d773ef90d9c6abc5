import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import ShapesDetection
from datamodules.picture_module import find_pictures
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


def indices(loader):
    return [index for batch in loader for index in batch["index"].tolist()]


def test_seed_changes_the_order(root):
    first, second = indices(shapes(root).train_dataloader()), indices(shapes(root, seed=1).train_dataloader())
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert indices(shapes(root, shuffle=False).train_dataloader()) == list(range(12))


def attached(data, **changes):
    """The data module as a Trainer sees it."""
    usual = {
        "global_rank": 0, "world_size": 1, "overfit_batches": 0.0, "limit_train_batches": 1.0, "current_epoch": 0,
        "default_root_dir": "run",
    }  # fmt: skip
    data.trainer = SimpleNamespace(**(usual | changes))
    return data


def test_the_trainer_says_which_share_and_epoch(root):
    whole = indices(shapes(root).train_dataloader())
    halves = [indices(attached(shapes(root), global_rank=r, world_size=2).train_dataloader()) for r in (0, 1)]
    # Of the first 8 samples of the epoch, 4 at a time: what one process takes in two steps, two take in one.
    assert sorted(halves[0][:4] + halves[1][:4]) == sorted(whole[:8])
    values = [indices(attached(shapes(root), global_rank=r, world_size=2).val_dataloader()) for r in (0, 1)]
    assert values == [[0, 2, 4], [1, 3]]
    continued = attached(shapes(root), current_epoch=1).train_dataloader()  # reload_dataloaders_every_n_epochs
    loader = shapes(root).train_dataloader()
    list(loader)
    assert indices(continued) == indices(loader)


def test_overfitting_sees_the_same_pictures_in_every_epoch(root):
    loader = attached(shapes(root), overfit_batches=1, limit_train_batches=1).train_dataloader()
    assert indices(loader) == indices(loader) == [0, 1, 2, 3]


def test_skipped_pictures_are_listed_in_the_run_directory(root):
    assert shapes(root).dataset("train", augmented=True).report is None
    assert attached(shapes(root)).dataset("train", augmented=True).report == Path("run/bad_samples.txt")


def test_augmentation_needs_a_size(root):
    data = shapes(root, image_size=None, augmentation="efficientdet")
    with pytest.raises(UserError, match=r"data\.augmentation efficientdet cuts pictures to data\.image_size"):
        data.train_dataloader()


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


@pytest.mark.parametrize("options", [{}, {"resize": "stretch"}, {"augmentation": "ssd"}])
def test_evaluation_targets_map_back_to_the_file(root, options):
    data = shapes(root, **options)
    assert data.description()["resize"] == ("stretch" if options else "fit")
    truth = data.annotations("val")
    for batch in data.val_dataloader():
        for i, index in enumerate(batch["index"].tolist()):
            labels = batch["targets"]["labels"][i]
            boxes = batch["targets"]["boxes"][i][labels >= 0] / batch["scale"][i].repeat(2)
            np.testing.assert_allclose(boxes, truth.training_targets(index)["boxes"], atol=1e-3)
            assert batch["original_size"][i].tolist() == [truth.heights[index], truth.widths[index]]
            assert (batch["image_size"][i].tolist() == [96, 96]) == bool(
                options or truth.heights[index] == truth.widths[index]
            )


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
