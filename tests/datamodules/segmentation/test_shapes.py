import numpy as np
import pytest
from PIL import Image

from datamodules import shapes as generator
from datamodules.images import read_image
from datamodules.randomness import sample_rng
from datamodules.segmentation import ShapesSegmentation
from datamodules.segmentation.masks import voc_palette
from datamodules.segmentation.shapes import generate, with_border
from errors import UserError


def shapes(root, **options):
    return ShapesSegmentation(root=str(root), **({"train_images": 6, "val_images": 3, "test_images": 2} | options))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = shapes(tmp_path_factory.mktemp("shapes"))
    assert [data.size(split) for split in data.splits] == [6, 3, 2]
    return data


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")}


def test_deterministic_and_made_once(data, tmp_path):
    other = shapes(tmp_path)
    assert other.fingerprint == data.fingerprint
    assert contents(other.folder) == contents(data.folder)
    assert len(contents(data.folder)) == 2 * (6 + 3 + 2) + 3
    times = [file.stat().st_mtime_ns for file in other.folder.rglob("*")]
    assert shapes(tmp_path).fingerprint == data.fingerprint
    assert [file.stat().st_mtime_ns for file in other.folder.rglob("*")] == times
    for change in ({"picture_seed": 1}, {"picture_size": 100}, {"train_images": 7}):
        assert shapes(tmp_path, **change).folder != other.folder


def test_classes_are_known_without_drawing(tmp_path):
    data = shapes(tmp_path / "none", test_images=0)
    assert data.class_names == ["background", "circle", "square", "triangle", "star", "ring"]
    assert data.num_classes == 6 and data.splits == ["train", "val"]
    assert not (tmp_path / "none").exists()


def test_files_hold_what_was_drawn(data):
    for number, split in enumerate(("train", "val", "test")):
        for index in range(data.size(split)):
            image, classes, masks = generator.draw(sample_rng(0, number, index), 160)
            file = data.folder / "SegmentationClass" / f"{split}_{index:06d}.png"
            with Image.open(file) as stored:
                assert stored.mode == "P"
                assert stored.getpalette() == voc_palette().ravel().tolist()
            label = data.label(split, index)
            drawn = generator.class_mask(classes, masks, *image.shape[:2])
            certain = label != 255
            np.testing.assert_array_equal(label[certain], drawn[certain])
            assert certain.mean() > 0.75 and set(np.unique(label[certain])) <= set(range(6))
            jpeg = read_image(data.folder / "JPEGImages" / f"{split}_{index:06d}.jpg", label.shape)
            assert np.abs(jpeg.astype(int) - image).mean() < 10


def test_the_border_is_two_pixels_wide():
    mask = np.zeros((8, 9), bool)
    mask[2:6, 3:] = True  # up to the right edge, where nothing is drawn
    drawn = with_border(mask.astype(np.uint8), [mask])
    assert drawn.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 255, 255, 255, 255, 255, 255, 255],
        [0, 0, 255, 255, 255, 255, 255, 255, 255],
        [0, 0, 255, 255, 1, 1, 1, 1, 1],
        [0, 0, 255, 255, 1, 1, 1, 1, 1],
        [0, 0, 255, 255, 255, 255, 255, 255, 255],
        [0, 0, 255, 255, 255, 255, 255, 255, 255],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_an_interrupted_generation_is_begun_anew(tmp_path):
    (tmp_path / "shapes.unfinished" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "shapes.unfinished" / "JPEGImages" / "junk.jpg").write_text("")
    generate(tmp_path / "shapes", {"train": 1, "val": 0, "test": 0}, 64, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert [path.name for path in (tmp_path / "shapes" / "JPEGImages").iterdir()] == ["train_000000.jpg"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written.*--data\.root"):
        shapes(tmp_path / "file").size("train")
