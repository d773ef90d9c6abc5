import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from datamodules import CocoDetection
from datamodules.coco_file import read_coco
from errors import UserError
from tests.datamodules.builders import annotation, coco


def test_ids_with_gaps_become_dense_labels(tmp_path):
    a = read_coco(coco(tmp_path), tmp_path / "images")
    assert a.class_names == ["dog", "cat"] and a.category_ids == [3, 7]  # by ascending id, as COCOeval orders
    assert a.image_ids == [10, 5] and a.offsets.tolist() == [0, 0, 2]  # the file's order; the first image is empty
    assert a.labels.tolist() == [1, 0] and a.iscrowd.tolist() == [False, True]
    assert a.boxes.tolist() == [[1, 2, 10, 12], [20.5, 3, 10, 5]] and a.boxes.dtype == np.float64
    assert a.training_targets(1)["boxes"].tolist() == [[1, 2, 11, 14], [20.5, 3, 30.5, 8]]
    assert len(a.training_targets(0)["boxes"]) == 0


def test_agrees_with_pycocotools(tmp_path):
    file = coco(tmp_path)
    a, peer = read_coco(file, None), COCO(str(file))
    assert sorted(a.image_ids) == sorted(peer.getImgIds()) and a.category_ids == sorted(peer.getCatIds())
    assert a.area.tolist() == [peer.anns[i]["area"] for i in (1, 2)]


def test_ids_may_be_strings(tmp_path):
    file = coco(
        tmp_path,
        images=[{"id": "a-1", "file_name": "a.jpg", "width": 40, "height": 30}],
        annotations=[annotation(image_id="a-1", category_id="7")],
    )
    a = read_coco(file, tmp_path / "images")
    assert a.image_ids == ["a-1"] and a.labels.tolist() == [1]


@pytest.mark.parametrize("first", [0, 1])
def test_categories_starting_at_0_or_1(tmp_path, first):
    categories = [{"id": first + i, "name": name} for i, name in enumerate("xyz")]
    a = read_coco(coco(tmp_path, categories=categories, annotations=[annotation(category_id=first + 2)]), None)
    assert a.labels.tolist() == [2] and a.category_ids == [first, first + 1, first + 2]


def test_odd_boxes_are_kept_for_the_metric_and_mended_for_training(tmp_path):
    boxes = [[5, 5, 0, 4], [-3, -3, 10, 10], [35, 25, 10, 10], [60, 5, 5, 5]]
    a = read_coco(coco(tmp_path, annotations=[annotation(id=i, bbox=b) for i, b in enumerate(boxes)]), None)
    assert a.ground_truth()["boxes"].tolist() == boxes
    assert a.training_targets(1)["boxes"].tolist() == [[0, 0, 7, 7], [35, 25, 40, 30]]


def test_missing_area_is_that_of_the_box(tmp_path):
    entry = annotation()
    del entry["area"], entry["iscrowd"]
    a = read_coco(coco(tmp_path, annotations=[entry]), None)
    assert a.area.tolist() == [120] and a.iscrowd.tolist() == [False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation(image_id=99)]}, r"annotation 9 refers to image 99, which is not listed"),
        ({"annotations": [annotation(category_id=90)]}, r"annotation 9 has category 90"),
        ({"annotations": [annotation(bbox=[1, 2, -3, 4])]}, r"annotation 9 .* negative size"),
        ({"annotations": [annotation(bbox=[1, 2, 3])]}, r"annotation 9 has bbox \[1, 2, 3\]"),
        ({"annotations": [annotation(bbox=[1, 2, float("nan"), 4])]}, r"annotation 9 bbox holds nan"),
        ({"annotations": [annotation(area="big")]}, r"annotation 9 area holds 'big'"),
        ({"annotations": [annotation(id=i, bbox=[20, 15, 39, 29]) for i in range(20)]}, r"20 of 20 boxes end outside"),
        ({"annotations": None}, r"no list 'annotations'"),
        ({"categories": []}, r"no categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, r"category id 1 stands twice"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 3, "name": "a"}]}, r"'a' stands for several ids"),
        ({"categories": [{"name": "a"}]}, r"category number 1 has no id"),
        ({"images": []}, r"no images"),
        ({"images": [{"id": 5, "file_name": "a.jpg", "width": 40}]}, r"image 5 has no 'height'"),
        ({"images": [{"id": 5, "file_name": "a.jpg", "width": 0, "height": 30}]}, r"size 0 x 30"),
        ({"images": [{"id": 5, "file_name": "c.jpg", "width": 40, "height": 30}]}, r"c\.jpg: 1 of the 1 images"),
    ],
)
def test_mistakes_name_file_and_annotation(tmp_path, changes, message):
    file = coco(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        read_coco(file, tmp_path / "images")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such annotation file"):
        read_coco(tmp_path / "none.json", None)
    file = coco(tmp_path)
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match=r"no valid JSON .* complete\?"):
        read_coco(file, None)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"results file"):
        read_coco(file, None)
    with pytest.raises(UserError, match=r"nowhere: no such image folder"):
        read_coco(coco(tmp_path), tmp_path / "nowhere")


def module(tmp_path, **options):
    coco(tmp_path)
    files = {"train_annotations": "instances.json", "train_images": "images", "val_annotations": None}
    return CocoDetection(root=str(tmp_path), **(files | options))


def test_own_dataset(tmp_path):
    data = module(tmp_path, image_size=64)
    assert data.num_classes == 2 and data.splits == ["train"]
    description = data.description()
    assert json.loads(json.dumps(description)) == description
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 64, 64)


def test_missing_dataset_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"instances_train2017\.json: no such .*--data\.root.*--data\.download true"):
        _ = CocoDetection(root=str(tmp_path)).num_classes


def test_splits_with_other_categories_are_refused(tmp_path):
    coco(tmp_path / "val", categories=[{"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}])
    data = module(tmp_path, val_annotations="val/instances.json", val_images="val/images")
    assert data.num_classes == 2
    with pytest.raises(UserError, match=r"the val split .* 'cow'"):
        data.val_dataloader()
