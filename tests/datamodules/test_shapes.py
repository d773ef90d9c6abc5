import hashlib
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import datamodules.shapes
from datamodules import ShapesDetection
from datamodules.randomness import sample_rng
from datamodules.shapes import CLASSES, class_mask, draw, generate
from errors import UserError


def shapes(root, **options):
    return ShapesDetection(root=str(root), **({"train_images": 12, "val_images": 5, "test_images": 4} | options))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = shapes(tmp_path_factory.mktemp("shapes"))
    assert len(data.annotations("train")) == 12
    return data


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")}


def test_deterministic_and_made_once(data, tmp_path):
    other = shapes(tmp_path)
    assert other.fingerprint == data.fingerprint
    assert contents(other.folder) == contents(data.folder)
    assert len(contents(data.folder)) == 12 + 5 + 4 + 3
    times = [file.stat().st_mtime_ns for file in other.folder.rglob("*")]
    assert shapes(tmp_path).fingerprint == data.fingerprint
    assert [file.stat().st_mtime_ns for file in other.folder.rglob("*")] == times


@pytest.mark.parametrize("change", [{"picture_seed": 1}, {"picture_size": 100}, {"train_images": 13}])
def test_other_arguments_make_other_data(data, change):
    other = shapes(data.folder.parent, **change)
    assert other.folder != data.folder and other.fingerprint != data.fingerprint


def test_a_changed_generator_makes_other_data(data):
    source = Path(datamodules.shapes.__file__).read_bytes()
    assert hashlib.sha256(source).hexdigest()[:8] in data.folder.name


def test_classes_are_known_without_drawing(tmp_path):
    data = shapes(tmp_path / "none")
    assert data.num_classes == 5 and data.class_names == list(CLASSES)
    assert data.splits == ["train", "val", "test"] and shapes(tmp_path, test_images=0).splits == ["train", "val"]
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with NumPy 2
def test_files_hold_what_was_drawn(data):
    """The masks on disk do not overlap and together are the class mask; box and area are those of the mask."""
    file = json.loads((data.folder / "annotations" / "instances_val.json").read_text())
    assert len({a["id"] for a in file["annotations"]}) == len(file["annotations"]) > 0
    for number, image in enumerate(file["images"]):
        picture, classes, masks = draw(sample_rng(0, 1, number), 160)
        assert picture.shape == (image["height"], image["width"], 3) and max(picture.shape) == 160
        semantic = np.zeros(picture.shape[:2], np.uint8)
        mine = [a for a in file["annotations"] if a["image_id"] == image["id"]]
        assert [a["category_id"] - 1 for a in mine] == classes
        for a in mine:
            mask = coco_mask.decode([a["segmentation"]])[..., 0].astype(bool)
            assert not semantic[mask].any() and mask.sum() == a["area"] > 0
            ys, xs = np.nonzero(mask)
            assert a["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            semantic[mask] = a["category_id"]
        np.testing.assert_array_equal(semantic, class_mask(classes, masks, *picture.shape[:2]))


def test_pictures_are_varied():
    drawn = [draw(sample_rng(5, 0, index), 96) for index in range(150)]
    counts = [len(classes) for _, classes, _ in drawn]
    assert 3 <= counts.count(0) <= 30 and set(counts) == set(range(6))
    frequencies = np.bincount([label for _, classes, _ in drawn for label in classes], minlength=5)
    assert frequencies.min() > 0.5 * frequencies.mean()
    areas = np.array([mask.sum() for _, _, masks in drawn for mask in masks])
    assert areas.min() < 200 and areas.max() > 2000
    assert len({picture.shape for picture, _, _ in drawn}) > 20


def _make(root, results):
    results.put(shapes(root).fingerprint)


def test_several_processes_make_it_once(data, tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_make, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert {results.get(timeout=60) for _ in processes} == {data.fingerprint}
    for process in processes:
        process.join()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [data.folder.name]


def test_an_interrupted_generation_is_begun_anew(tmp_path):
    folder = tmp_path / "shapes"
    (tmp_path / "shapes.unfinished" / "annotations").mkdir(parents=True)
    (tmp_path / "shapes.unfinished" / "annotations" / "junk.json").write_text("{")
    generate(folder, {"train": 1, "val": 0, "test": 0}, 64, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes"]
    assert not (folder / "annotations" / "junk.json").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written.*--data\.root"):
        shapes(tmp_path / "file").annotations("train")
