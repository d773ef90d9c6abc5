import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from models.detection.box_coder import BoxCoder
from models.detection.boxes import clip_boxes, pairwise_iou

coordinate = st.floats(0, 500, width=32)
side = st.floats(1, 500, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
boxes = st.lists(box, min_size=1, max_size=6).map(torch.tensor)


def test_iou_of_known_boxes():
    first = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    second = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 5]])
    expected = torch.tensor([[1, 50 / 150, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(pairwise_iou(first, second), expected)


@settings(max_examples=50, deadline=None)
@given(boxes, boxes)
def test_iou_is_torchvisions_symmetric_and_bounded(first, second):
    iou = pairwise_iou(first, second)
    torch.testing.assert_close(iou, box_iou(first, second))
    assert torch.equal(iou, pairwise_iou(second, first).T)
    assert ((iou >= 0) & (iou <= 1 + 1e-6)).all()
    torch.testing.assert_close(pairwise_iou(first, first).diagonal(), torch.ones(len(first)))


def test_iou_broadcasts_over_images():
    first, second = torch.rand(3, 5, 4), torch.rand(7, 4)
    assert pairwise_iou(first, second).shape == (3, 5, 7)
    torch.testing.assert_close(pairwise_iou(first, second)[1], pairwise_iou(first[1], second))


def test_clip_takes_height_and_width():
    clipped = clip_boxes(torch.tensor([[[-5.0, -5, 500, 500]]]), torch.tensor([[100, 200]]))
    assert clipped.tolist() == [[[0, 0, 200, 100]]]


def test_codes_of_a_known_box():
    anchor = torch.tensor([0.0, 0, 10, 20])
    box = torch.tensor([5.0, 10, 25, 20])  # centre (15, 15) from (5, 10); 20 x 10 from 10 x 20
    log2 = 0.6931472
    expected = torch.tensor([5 / 20, 10 / 10, -log2, log2])
    torch.testing.assert_close(BoxCoder().encode(box, anchor), expected)
    weighted = BoxCoder(weights=(10, 10, 5, 5), y_first=False).encode(box, anchor)
    torch.testing.assert_close(weighted, torch.tensor([10.0, 2.5, 5 * log2, -5 * log2]))


@settings(max_examples=50, deadline=None)
@given(boxes, box, st.booleans())
def test_decoding_inverts_encoding(some, anchor, y_first):
    coder = BoxCoder(weights=(10, 10, 5, 5), y_first=y_first)
    anchor = torch.tensor(anchor)
    torch.testing.assert_close(coder.decode(coder.encode(some, anchor), anchor), some, rtol=1e-4, atol=5e-3)
