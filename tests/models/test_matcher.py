import pytest
import torch

from models.detection import matcher as module
from models.detection.matcher import IGNORED, NEGATIVE, Matcher

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [100, 100, 110, 110], [0, 0, 10, 4.5], [50, 50, 60, 60]])


def match(boxes, valid=None, **options):
    boxes = torch.tensor(boxes).view(1, -1, 4)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.tensor([valid])
    return Matcher(**options)(ANCHORS, boxes, valid)[0].tolist()


def test_threshold_is_inclusive_and_nothing_is_ignored():
    # overlaps with the box: 1, .5, 0, .45, 0
    assert match([[0.0, 0, 10, 10]]) == [0, 0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_band_between_thresholds_is_ignored():
    assert match([[0.0, 0, 10, 10]], negative_iou=0.4) == [0, 0, NEGATIVE, IGNORED, NEGATIVE]


def test_every_object_gets_an_anchor():
    box = [100.0, 100, 102, 102]  # overlap .04
    assert match([[0.0, 0, 10, 10], box]) == [0, 0, 1, NEGATIVE, NEGATIVE]
    assert match([[0.0, 0, 10, 10], box], force_match=False) == [0, 0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_first_of_rivals_gets_the_anchor_both_need():
    small = [[104.0, 104, 106, 106], [101, 101, 103, 103]]
    assert match(small)[2] == 0


def test_forced_anchor_is_taken_from_a_better_object():
    # Anchor 4 overlaps the first box by .49 and nothing else overlaps the second, which it contains.
    boxes = [[50.0, 50, 60, 60], [54, 54, 56, 56]]
    assert match(boxes)[4] == 0  # both force it: the first wins
    assert match([boxes[1], boxes[0]])[4] == 0


def test_object_outside_all_anchors_takes_none():
    assert match([[300.0, 300, 310, 310]]) == [NEGATIVE] * 5


@pytest.mark.parametrize("count", [0, 3])
def test_no_objects(count):
    boxes, valid = torch.rand(2, count, 4), torch.zeros(2, count, dtype=torch.bool)
    assert (Matcher()(ANCHORS, boxes, valid) == NEGATIVE).all()


def test_invalid_places_take_no_anchor():
    boxes = [[0.0, 0, 10, 10], [100, 100, 110, 110]]
    assert match(boxes, valid=[False, True]) == [NEGATIVE, NEGATIVE, 1, NEGATIVE, NEGATIVE]


def test_slices_change_nothing(monkeypatch):
    torch.manual_seed(0)
    anchors, boxes = (torch.rand(*shape, 4) for shape in [(500,), (3, 6)])
    anchors[:, 2:] += anchors[:, :2]
    boxes[..., 2:] += boxes[..., :2]
    valid = torch.rand(3, 6) < 0.8
    whole = Matcher(negative_iou=0.4)(anchors, boxes, valid)
    monkeypatch.setattr(module, "SLICE_ELEMENTS", 100)
    assert torch.equal(Matcher(negative_iou=0.4)(anchors, boxes, valid), whole)
    assert {NEGATIVE, IGNORED} < set(whole.unique().tolist())


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(ValueError, match="negative_iou <= positive_iou"):
        Matcher(positive_iou=0.4, negative_iou=0.5)
