import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.segmentation import FolderSegmentation, ShapesSegmentation
from datamodules.segmentation.collate import collate_segmentation
from errors import UserError
from tests.datamodules.builders import picture
from tests.datamodules.segmentation.builders import LABELS, folder, mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shapes"))


def shapes(root, **options):
    small = {"train_images": 12, "val_images": 5, "test_images": 0, "crop_size": 96, "batch_size": 4}
    return ShapesSegmentation(root=root, **(small | options))


def digest(batches):
    state = hashlib.sha256()
    for batch in batches:
        for value in (batch["image"], batch["mask"], batch["index"], batch["image_size"]):
            state.update(value.numpy().tobytes())
    return state.hexdigest()


def test_samples_do_not_depend_on_workers(root):
    transforms = [{"class_path": "ColorJitter", "init_args": {"p": 0.8}}]
    digests = set()
    for workers in (0, 1, 2):
        loader = shapes(root, num_workers=workers, transforms=transforms).train_dataloader()
        digests.add(digest([*loader, *loader]))
    assert len(digests) == 1


def test_seed_and_epoch_change_samples(root):
    loader = shapes(root).train_dataloader()
    first, second = digest(loader), digest(loader)
    assert first != second
    assert digest(shapes(root, seed=1).train_dataloader()) != first
    assert digest(shapes(root).train_dataloader()) == first


def test_a_sample_is_a_function_of_seed_epoch_and_index(root):
    one, other = shapes(root).dataset("train", augmented=True), shapes(root).dataset("train", augmented=True)
    expected = {key: one[key]["mask"] for key in [(0, 3), (0, 4), (1, 3)]}
    for key in [(1, 3), (0, 4), (0, 3)]:  # in another order
        assert torch.equal(other[key]["mask"], expected[key])
    assert not torch.equal(expected[0, 3], expected[1, 3])


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_within_an_epoch(root, workers):
    loader = shapes(root).train_dataloader()
    whole = [digest([batch]) for _ in range(2) for batch in loader]
    stopped = shapes(root, num_workers=workers).train_dataloader()
    batches = iter(stopped)
    next(batches), next(batches)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = shapes(root, num_workers=2 - workers).train_dataloader()
    resumed.load_state_dict(state)
    assert [digest([batch]) for _ in range(2) for batch in resumed] == whole[2:]


def test_batches_keep_the_contract(root):
    for augmentation in ("none", "flip", "scale_crop"):
        data = shapes(root, augmentation=augmentation)
        for batch in data.train_dataloader():
            assert sorted(batch) == ["image", "image_size", "index", "mask", "original_size"]
            assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
            assert batch["image"].shape == (4, 3, *batch["mask"].shape[1:])
            assert batch["image_size"].dtype == batch["original_size"].dtype == batch["index"].dtype == torch.int64
            assert batch["image_size"].shape == batch["original_size"].shape == (4, 2)
            assert set(batch["mask"].unique().tolist()) <= {0, 1, 2, 3, 4, 5, 255}
            for image, labels, (height, width) in zip(batch["image"], batch["mask"], batch["image_size"], strict=True):
                assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()
                assert not image[:, height:].any() and not image[:, :, width:].any()
                assert (labels[:height, :width] != 255).float().mean() > 0.5


def test_evaluation_keeps_the_label_at_its_own_size(root):
    data = shapes(root, image_size=64, eval_batch_size=5)
    [batch] = data.val_dataloader()
    assert batch["image_size"].amin(1).tolist() == [64] * 5
    assert type(batch["label"]) is list
    for i, label in enumerate(batch["label"]):
        np.testing.assert_array_equal(label, data.label("val", i))
        assert list(label.shape) == batch["original_size"][i].tolist() and label.dtype == torch.uint8
        assert data.picture("val", i).shape == (*label.shape, 3)
        height, width = batch["image_size"][i]
        assert abs((batch["mask"][i, :height, :width] == 0).float().mean() - (label == 0).float().mean()) < 0.03
    as_they_are = next(iter(shapes(root, eval_batch_size=1).val_dataloader()))
    np.testing.assert_array_equal(as_they_are["mask"][0], as_they_are["label"][0])
    np.testing.assert_array_equal(as_they_are["image"][0].permute(1, 2, 0), data.picture("val", 0))


def test_collate_pads_images_with_zeros_and_masks_with_255():
    def sample(height, width, index):
        return {
            "image": torch.full((3, height, width), 7, dtype=torch.uint8),
            "image_size": (height, width), "original_size": (2 * height, 2 * width), "index": index,
            "mask": torch.full((height, width), 1, dtype=torch.uint8),
        }  # fmt: skip

    batch = collate_segmentation([sample(2, 3, 5), sample(3, 1, 6)], size_divisor=4)
    assert batch["image"].shape == (2, 3, 4, 4) and batch["mask"].shape == (2, 4, 4)
    assert batch["mask"][0].tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]
    assert batch["image"][1, 2].tolist() == [[7, 0, 0, 0], [7, 0, 0, 0], [7, 0, 0, 0], [0] * 4]
    assert batch["image_size"].tolist() == [[2, 3], [3, 1]] and batch["original_size"].tolist() == [[4, 6], [6, 2]]
    assert batch["index"].tolist() == [5, 6]
    assert collate_segmentation([sample(2, 3, 5), sample(3, 1, 6)])["mask"].shape == (2, 3, 3)


def test_what_the_data_says_of_itself(root):
    data = shapes(root)
    said = json.loads(json.dumps(data.description()))
    assert sorted(said) == ["class_names", "fingerprint", "image_size", "name", "palette", "task"]
    assert said["task"] == "segmentation" and said["name"] == "shapes_segmentation" and said["image_size"] is None
    assert said["palette"] == data.palette.tolist() and data.palette.shape == (256, 3)
    assert data.num_classes == len(said["class_names"]) == 6
    assert data.size("train") == 12 and data.size("val") == 5 and data.test_dataloader() == []
    with pytest.raises(UserError, match="no test split; it has train, val"):
        data.size("test")


def test_a_name_that_costs_nothing(tmp_path):
    """The command line formats data modules into its debug messages."""
    assert str(shapes(tmp_path / "none")) == "ShapesSegmentation shapes_segmentation"
    assert not (tmp_path / "none").exists()


def attached(data, **changes):
    """The data module as a Trainer sees it."""
    usual = {
        "global_rank": 0, "world_size": 1, "overfit_batches": 0.0, "limit_train_batches": 1.0, "current_epoch": 0,
        "default_root_dir": "run",
    }  # fmt: skip
    data.trainer = SimpleNamespace(**(usual | changes))
    return data


def indices(loader):
    return [index for batch in loader for index in batch["index"].tolist()]


def test_the_trainer_says_which_share_and_epoch(root):
    whole = indices(shapes(root).train_dataloader())
    halves = [indices(attached(shapes(root), global_rank=r, world_size=2).train_dataloader()) for r in (0, 1)]
    assert sorted(halves[0][:4] + halves[1][:4]) == sorted(whole[:8])
    values = [indices(attached(shapes(root), global_rank=r, world_size=2).val_dataloader()) for r in (0, 1)]
    assert values == [[0, 2, 4], [1, 3]]
    overfit = attached(shapes(root), overfit_batches=1, limit_train_batches=1).train_dataloader()
    assert indices(overfit) == indices(overfit) == [0, 1, 2, 3]
    assert attached(shapes(root)).dataset("train", augmented=True).bad.report == Path("run/bad_samples.txt")


def test_pictures_to_predict_on(root, tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.jpg", width=40 + i)
    batches = list(shapes(root, images=str(tmp_path), image_size=15, eval_batch_size=2).predict_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]
    assert sorted(batches[0]) == ["image", "image_size", "index", "original_size"]
    assert batches[0]["original_size"].tolist() == [[30, 40], [30, 41]]
    assert batches[0]["image_size"].tolist() == [[15, 20], [15, 20]]
    with pytest.raises(UserError, match=r"--data\.images"):
        shapes(root).predict_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"image_size": 0}, r"data\.image_size is 0"),
        ({"crop_size": -5}, r"data\.crop_size is -5"),
        ({"size_divisor": 0}, r"data\.size_divisor is 0"),
        ({"scale": (2.0, 0.5)}, r"data\.scale is \[2\.0, 0\.5\]"),
        ({"scale": (0, 1)}, r"data\.scale is \[0, 1\]"),
        ({"augmentation": "strong"}, r"data\.augmentation is 'strong'; choose one of none, flip, scale_crop"),
        ({"transforms": [{"class_path": "HorizontalFlip"}]}, "HorizontalFlip moves pixels, but only colours"),
        (
            {"transforms": [{"class_path": "OneOf", "init_args": {"transforms": [{"class_path": "Rotate"}]}}]},
            "Rotate moves pixels",
        ),
    ],
)
def test_bad_options(root, options, message):
    with pytest.raises(UserError, match=message):
        shapes(root, **options)


def test_a_crop_needs_a_size(root):
    with pytest.raises(UserError, match=r"scale_crop cuts pictures to data\.crop_size: give one"):
        shapes(root, crop_size=None).train_dataloader()


def test_colours_change_pictures_and_not_masks(root):
    plain = shapes(root, augmentation="none", shuffle=False)
    coloured = shapes(
        root, augmentation="none", shuffle=False, transforms=[{"class_path": "InvertImg", "init_args": {"p": 1.0}}]
    )
    for before, after in zip(plain.train_dataloader(), coloured.train_dataloader(), strict=True):
        assert torch.equal(before["mask"], after["mask"])
        height, width = before["image_size"][0]
        assert torch.equal(255 - before["image"][0, :, :height, :width], after["image"][0, :, :height, :width])


def own(root, **options):
    usual = {"classes": ["ground", "thing"], "val_images": "train/images", "val_masks": "train/masks"}
    return FolderSegmentation(root=str(root), augmentation="none", **({"batch_size": 2} | usual | options))


def test_a_mask_of_another_size_names_both(tmp_path):
    folder(tmp_path)
    mask(tmp_path / "train/masks/b.png", LABELS[:20])
    message = r"masks/b\.png: the mask has 40 x 20 pixels, its picture .*images/b\.jpg has 40 x 30; make the mask"
    for loader in (own(tmp_path).train_dataloader(), own(tmp_path, num_workers=1).val_dataloader()):
        with pytest.raises(UserError, match=message):
            list(loader)


def test_a_picture_turned_by_the_camera_fits_its_mask(tmp_path):
    folder(tmp_path, names=("a",))
    turned = Image.open(tmp_path / "train/images/a.jpg")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "train/images/a.jpg", exif=exif)
    assert own(tmp_path).picture("val", 0).shape == (30, 40, 3)  # drawn on the stored pixels
    mask(tmp_path / "train/masks/a.png", np.rot90(LABELS, -1).copy())
    assert own(tmp_path).picture("val", 0).shape == (40, 30, 3)  # drawn on the upright picture


@pytest.mark.parametrize("spoilt", ["images/b.jpg", "masks/b.png"])
def test_training_skips_bad_samples_on_demand(tmp_path, caplog, spoilt):
    folder(tmp_path, names=("a", "b", "c"))
    (tmp_path / "train" / spoilt).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=rf"{spoilt}: .*cannot be decoded"):
        list(own(tmp_path, shuffle=False).train_dataloader())
    dataset = own(tmp_path, on_bad_sample="skip").dataset("train", augmented=True)
    assert torch.equal(dataset[0, 1]["image"], dataset[0, 2]["image"]) and dataset[0, 1]["index"] == 1
    assert caplog.text.count("b.jpg: cannot be decoded; the next picture takes its place") == 1


def test_evaluation_never_skips(tmp_path, caplog):
    folder(tmp_path)
    (tmp_path / "train/images/b.jpg").write_bytes(b"\xff\xd8\xff")
    data = own(tmp_path, on_bad_sample="skip", num_workers=1)
    [batch] = data.val_dataloader()
    assert not batch["image"][1].any() and batch["image"][0].any()
    np.testing.assert_array_equal(batch["label"][1], LABELS)
    assert not data.picture("val", 1).any()
    with pytest.raises(UserError, match=r"b\.jpg: cannot be decoded"):
        list(own(tmp_path).val_dataloader())
    (tmp_path / "train/masks/b.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"b\.png: the mask cannot be decoded"):
        list(own(tmp_path, on_bad_sample="skip").val_dataloader())


def test_no_picture_can_be_decoded(tmp_path):
    folder(tmp_path)
    for name in "ab":
        (tmp_path / f"train/images/{name}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"this picture and the 1 others of its split cannot be decoded"):
        list(own(tmp_path, on_bad_sample="skip").train_dataloader())


def test_bad_pictures_are_listed_once(tmp_path, caplog):
    folder(tmp_path, names=("a", "b", "c"))
    (tmp_path / "train/images/b.jpg").write_bytes(b"\xff\xd8\xff")
    for _ in range(2):  # two runs in one directory
        data = attached(own(tmp_path, on_bad_sample="skip", batch_size=1), default_root_dir=str(tmp_path / "run"))
        loader = data.train_dataloader()
        list(loader), list(loader)
    assert (tmp_path / "run" / "bad_samples.txt").read_text() == f"{tmp_path}/train/images/b.jpg\n"
    assert caplog.text.count("takes its place") == 1
