import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from datamodules.segmentation import CocoSegmentation
from errors import UserError
from tests.datamodules import builders

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with NumPy 2

TINY = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "coco_tiny_sg" / "tests" / "data" / "tinycoco"


def square(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def annotation(identity, category, segmentation, iscrowd=0, image=10, area=100):
    return {
        "id": identity, "image_id": image, "category_id": category, "bbox": [0, 0, 10, 10], "area": area,
        "iscrowd": iscrowd, "segmentation": segmentation,
    }  # fmt: skip


def coco(root, *annotations, **options):
    file = builders.coco(root, annotations=list(annotations))
    return CocoSegmentation(
        root=str(root), train_annotations=file.name, train_images="images", val_annotations=None, **options
    )


def painted(*squares):
    labels = np.zeros((30, 40), np.uint8)
    for x1, y1, x2, y2, label in squares:
        labels[y1:y2, x1:x2] = label
    return labels


def test_smaller_objects_lie_in_front(tmp_path):
    """Whatever their order in the file and the areas that it says; labels follow the category ids."""
    small, large = annotation(1, 7, square(5, 5, 10, 10), area=999), annotation(2, 3, square(0, 0, 20, 20), area=1)
    for order in ((small, large), (large, small)):
        data = coco(tmp_path, *order)
        assert data.class_names == ["background", "dog", "cat"] and data.num_classes == 3
        np.testing.assert_array_equal(data.label("train", 0), painted((0, 0, 20, 20, 1), (5, 5, 10, 10, 2)))
        np.testing.assert_array_equal(data.label("train", 1), painted())  # a picture without objects


def test_of_equal_objects_the_later_is_in_front(tmp_path):
    data = coco(tmp_path, annotation(1, 3, square(0, 0, 9, 9)), annotation(2, 7, square(4, 0, 13, 9)))
    np.testing.assert_array_equal(data.label("train", 0), painted((0, 0, 9, 9, 1), (4, 0, 13, 9, 2)))


def test_overlaps_as_void(tmp_path):
    objects = annotation(1, 3, square(0, 0, 9, 9)), annotation(2, 7, square(4, 0, 13, 9))
    data = coco(tmp_path, *objects, overlap="void")
    np.testing.assert_array_equal(data.label("train", 0), painted((0, 0, 9, 9, 1), (4, 0, 13, 9, 2), (4, 0, 9, 9, 255)))


def test_crowds_do_not_count_but_their_members_do(tmp_path):
    crowd = {"size": [30, 40], "counts": [0, 300, 900]}  # the first 10 columns
    data = coco(tmp_path, annotation(1, 7, crowd, iscrowd=1), annotation(2, 3, square(0, 0, 5, 5)))
    np.testing.assert_array_equal(data.label("train", 0), painted((0, 0, 10, 30, 255), (0, 0, 5, 5, 1)))


def test_every_form_of_outline_is_the_same_mask(tmp_path):
    mask = painted((3, 4, 20, 25, 1))
    encoded = coco_mask.encode(np.asfortranarray(mask))
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel(), 2])))  # columns first, beginning with zeros
    outlines = [
        square(3, 4, 20, 25),
        [*square(3, 4, 20, 14), *square(3, 14, 20, 25)],
        {"size": [30, 40], "counts": runs.tolist()},
        {"size": [30, 40], "counts": encoded["counts"].decode()},
    ]
    for outline in outlines:
        np.testing.assert_array_equal(coco(tmp_path, annotation(1, 3, outline)).label("train", 0), mask)


def test_chosen_categories(tmp_path):
    objects = annotation(1, 3, square(0, 0, 20, 20)), annotation(2, 7, square(5, 5, 10, 10))
    data = coco(tmp_path, *objects, categories=["cat"])
    assert data.class_names == ["background", "cat"]
    np.testing.assert_array_equal(data.label("train", 0), painted((5, 5, 10, 10, 1)))
    turned = coco(tmp_path, *objects, categories=["cat", "dog"])
    np.testing.assert_array_equal(turned.label("train", 0), painted((0, 0, 20, 20, 2), (5, 5, 10, 10, 1)))
    assert len({data.fingerprint, turned.fingerprint, coco(tmp_path, *objects).fingerprint}) == 3
    with pytest.raises(
        UserError, match=r"data\.categories holds 'cow', which .*instances\.json does not list; .*dog, cat"
    ):
        coco(tmp_path, *objects, categories=["cow"]).size("train")


def test_small_objects_leave_training_pictures_out(tmp_path):
    objects = [
        annotation(1, 3, square(0, 0, 5, 5), image=10, area=25),
        annotation(2, 3, square(0, 0, 9, 9), image=5, area=81),
        annotation(3, 7, square(9, 9, 20, 20), image=10, area=121),
    ]
    assert coco(tmp_path, *objects).size("train") == 2
    data = coco(tmp_path, *objects, categories=["dog"], min_area=26)
    assert [Path(file).name for file in data.samples("train").image_files] == ["b.jpg"]
    np.testing.assert_array_equal(data.label("train", 0), painted((0, 0, 9, 9, 1)))
    with pytest.raises(UserError, match=r"no picture has objects of data\.min_area 99"):
        coco(tmp_path, *objects, categories=["dog"], min_area=99).size("train")


def test_batches(tmp_path):
    data = coco(tmp_path, annotation(1, 3, square(0, 0, 20, 20)), augmentation="none", shuffle=False, batch_size=2)
    batch = next(iter(data.train_dataloader()))
    np.testing.assert_array_equal(batch["mask"][0], painted((0, 0, 20, 20, 1)))
    assert batch["image"].shape == (2, 3, 30, 40)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, r"annotation 9 has the segmentation None; give polygons"),
        ([], r"annotation 9 has the segmentation \[\]"),
        ([[1, 2, 3, 4]], r"has the segmentation \[\[1, 2, 3, 4\]\]; give polygons of three or more corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], r"annotation 9 has the segmentation"),
        ([[1, 2, 3, 4, 5, "x"]], r"annotation 9 has the segmentation"),
        ([1, 2, 3, 4, 5, 6], r"annotation 9 has the segmentation"),
        (
            {"size": [40, 30], "counts": [1200]},
            r"run lengths for height and width \[40, 30\], its picture has \[30, 40\]",
        ),
        ({"size": [30, 40], "counts": [7]}, r"annotation 9 has run lengths that cannot be decoded \(7 pixels\)"),
        ({"size": [30, 40]}, r"annotation 9 has run lengths that cannot be decoded"),
    ],
)
def test_bad_outlines_name_the_annotation(tmp_path, outline, message):
    with pytest.raises(UserError, match=r"instances\.json: .*" + message):
        coco(tmp_path, annotation(9, 3, outline)).size("train")


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"instances_train2017\.json: no such annotation file; .*--data\.download true"):
        CocoSegmentation(root=str(tmp_path)).size("train")


@pytest.mark.skipif(not TINY.is_dir(), reason="the small COCO set is not at hand")
def test_on_cocos_own_pictures():
    data = CocoSegmentation(root=str(TINY), train_images="images/train2017", val_images="images/val2017", crop_size=64)
    assert (data.num_classes, data.size("train"), data.size("val")) == (81, 32, 6)
    content = json.loads((TINY / "annotations" / "instances_val2017.json").read_text())
    categories = sorted(category["id"] for category in content["categories"])
    for index, image in enumerate(content["images"]):
        size = image["height"], image["width"]
        covering = np.zeros((82, *size), bool)  # by label: where an object of it lies; the last: crowds
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                rle = coco_mask.frPyObjects(a["segmentation"], *size)
                mask = coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle).astype(bool)
                covering[81 if a["iscrowd"] else categories.index(a["category_id"]) + 1] |= mask
        label = data.label("val", index)
        covering[0] = ~covering.any(0)
        assert np.take_along_axis(covering, np.where(label == 255, 81, label)[None].astype(int), 0).all()
    assert len(next(iter(data.train_dataloader()))["index"]) == 16
