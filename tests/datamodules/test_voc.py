import pytest

from datamodules import VocDetection
from datamodules.voc import fetch_voc, read_voc
from errors import UserError
from tests.datamodules.builders import voc


def test_boxes_become_half_open_from_zero(tmp_path):
    voc(tmp_path, [("cat", (1, 1, 40, 30), 0), ("dog", (5, 6, 7, 8), 1)])
    a = read_voc(tmp_path, ["./train"], ["cat", "dog"])
    assert a.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 3, 3]]
    assert a.area.tolist() == [1200, 9] and a.difficult.tolist() == [False, True]
    assert a.image_ids == ["x"] and a.category_ids == [1, 2]
    assert (a.widths[0], a.heights[0]) == (40, 30)


def test_difficult_objects_are_not_learnt_unless_asked(tmp_path):
    voc(tmp_path, [("cat", (1, 1, 20, 20), 0), ("dog", (5, 6, 17, 18), 1)])
    options = {"train_sets": ["./train"], "val_sets": [], "classes": ["cat", "dog"], "image_size": 64}
    for keep, expected in ((False, [0]), (True, [0, 1])):
        data = VocDetection(root=str(tmp_path), keep_difficult=keep, augmentation="none", **options)
        labels = next(iter(data.train_dataloader()))["targets"]["labels"][0]
        assert labels[labels >= 0].tolist() == expected


def test_empty_boxes_count_for_the_metric_only(tmp_path):
    voc(tmp_path, [("cat", (9, 9, 9, 9), 0), ("cat", (1, 1, 20, 20), 0)])
    a = read_voc(tmp_path, ["./train"], ["cat"])
    assert len(a.boxes) == 2 and len(a.training_targets(0)["boxes"]) == 1


def test_several_sets_are_joined(tmp_path):
    voc(tmp_path / "VOC2007", [("cat", (1, 1, 9, 9), 0)])
    voc(tmp_path / "VOC2012", [("cat", (1, 1, 9, 9), 0)])
    a = read_voc(tmp_path, ["VOC2007/train", "VOC2012/train"], ["cat"])
    assert a.image_ids == ["VOC2007/x", "VOC2012/x"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([("cow", (1, 1, 9, 9), 0)], r"x\.xml: has an object named 'cow'.*--data\.classes"),
        ([("cat", (1, 1, "wide", 9), 0)], r"x\.xml: bndbox has xmax 'wide'"),
        ([("cat", (20, 1, 9, 9), 0)], r"x\.xml: its cat ends before it begins"),
    ],
)
def test_mistakes_name_the_file(tmp_path, objects, message):
    with pytest.raises(UserError, match=message):
        read_voc(voc(tmp_path, objects), ["./train"], ["cat", "dog"])


def test_missing_and_broken_files(tmp_path):
    voc(tmp_path, [])
    with pytest.raises(UserError, match=r"val\.txt: no such list.*--data\.val_sets"):
        read_voc(tmp_path, ["./val"], ["cat"])
    (tmp_path / "Annotations" / "x.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"x\.xml: is no valid XML"):
        read_voc(tmp_path, ["./train"], ["cat"])
    (tmp_path / "Annotations" / "x.xml").write_text("<annotation></annotation>")
    with pytest.raises(UserError, match=r"x\.xml: has no size"):
        read_voc(tmp_path, ["./train"], ["cat"])
    (tmp_path / "Annotations" / "x.xml").unlink()
    with pytest.raises(UserError, match=r"x\.xml: no such annotation"):
        read_voc(tmp_path, ["./train"], ["cat"])


def test_download_needs_the_right_root(tmp_path):
    with pytest.raises(UserError, match=r"end data\.root with it"):
        fetch_voc(tmp_path / "voc")
