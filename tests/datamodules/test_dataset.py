import pickle

import numpy as np
import pytest
import torch

from datamodules import CocoDetection
from datamodules.recipes import AUGMENTATIONS
from errors import UserError
from tests.datamodules.builders import annotation, coco, picture


def dataset(tmp_path, broken=(), **options):
    """Four pictures with a box each, some of them truncated."""
    names = [f"{i}.jpg" for i in range(4)]
    for i, name in enumerate(names):
        file = picture(tmp_path / "images" / name, seed=i)
        if i in broken:
            file.write_bytes(file.read_bytes()[:200])
    images = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)]
    objects = [
        annotation(image_id=i, bbox=[i, 2, 10, 12], segmentation=[[i, 2, i + 10, 2, i + 10, 14, i, 14]])
        for i in range(4)
    ]
    coco(tmp_path, images=images, annotations=objects)
    return CocoDetection(
        root=str(tmp_path), train_annotations="instances.json", train_images="images",
        val_annotations="instances.json", val_images="images",
        **({"image_size": 64, "batch_size": 4, "augmentation": "none", "shuffle": False} | options),
    )  # fmt: skip


def test_a_sample_is_the_picture_and_its_objects(tmp_path):
    data = dataset(tmp_path, image_size=None).dataset("train", augmented=True)
    original, objects = data.load(3)
    sample = data[7, 3]
    np.testing.assert_array_equal(sample["image"].numpy(), original.transpose(2, 0, 1))
    assert sample["image"].is_contiguous() and sample["image"].dtype == torch.uint8
    assert sample["boxes"].tolist() == objects["boxes"].tolist() == [[3, 2, 13, 14]]
    assert sample["area"].tolist() == [120] and sample["index"] == 3
    assert sample["original_size"] == sample["image_size"] == (30, 40) and sample["scale"] == (1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_picture_stops_the_run_by_default(tmp_path, workers):
    with pytest.raises(UserError, match=r"^[^\n]*2\.jpg: cannot be decoded[^\n]*on_bad_sample[^\n]*$"):
        list(dataset(tmp_path, broken=[2], num_workers=workers).train_dataloader())


def test_skipped_pictures_are_replaced_by_the_next_one(tmp_path, caplog):
    data = dataset(tmp_path, broken=[2, 3], on_bad_sample="skip")
    (batch,) = data.train_dataloader()
    for bad in (2, 3):
        assert torch.equal(batch["image"][bad], batch["image"][0])
        assert torch.equal(batch["targets"]["boxes"][bad], batch["targets"]["boxes"][0])
    assert not torch.equal(batch["image"][1], batch["image"][0])
    assert caplog.text.count("3.jpg: cannot be decoded; the next picture takes its place") == 1


def test_evaluation_shows_black_for_a_skipped_picture(tmp_path, caplog):
    (batch,) = dataset(tmp_path, broken=[2], on_bad_sample="skip").val_dataloader()
    assert not batch["image"][2].any() and batch["image"][3].any()
    assert batch["index"].tolist() == [0, 1, 2, 3] and batch["targets"]["labels"][2, 0] >= 0
    assert "2.jpg: cannot be decoded; its objects count as missed" in caplog.text


def test_skipped_pictures_are_listed_once(tmp_path, capfd):
    """By two workers in several epochs, by another data module, and after a restart."""
    report = tmp_path / "run" / "bad_samples.txt"
    for workers in (2, 0):
        data = dataset(tmp_path, broken=[1, 2], on_bad_sample="skip", num_workers=workers, batch_size=1, shuffle=True)
        loader = data.train_dataloader()
        loader.dataset.report = report
        list(loader), list(loader)
    assert sorted(report.read_text().splitlines()) == [str(tmp_path / "images" / f"{i}.jpg") for i in (1, 2)]
    assert capfd.readouterr().err.count("cannot be decoded") in (0, 2)  # 0: pytest's log capture took them


def test_nothing_but_bad_pictures(tmp_path):
    with pytest.raises(UserError, match="and the 3 others of its split cannot be decoded"):
        list(dataset(tmp_path, broken=range(4), on_bad_sample="skip").train_dataloader())


def test_skipping_is_the_same_with_workers(tmp_path):
    images = []
    for workers in (0, 2):
        data = dataset(tmp_path, broken=[1], on_bad_sample="skip", num_workers=workers, batch_size=2, shuffle=True)
        images.append(torch.cat([batch["image"] for batch in data.train_dataloader()]))
    assert torch.equal(*images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_datasets_can_be_sent_to_workers(tmp_path, name):
    """Where processes are not forked (macOS, Python 3.14), the dataset is pickled."""
    data = dataset(tmp_path, augmentation=name, transforms=[{"class_path": "ToGray"}]).dataset("train", augmented=True)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[1, 2]["image"], data[1, 2]["image"])
