import numpy as np
import pytest

from visualisation.boxes import caption, class_colour, contact_sheet, draw_boxes


@pytest.mark.parametrize("side", [64, 400, 2000])
def test_draw_boxes_at_any_size(side):
    image = np.zeros((side, 2 * side, 3), np.uint8)
    boxes = np.array([[0.1, 0.2, 0.5, 0.9]]) * side
    drawn = draw_boxes(image, boxes, np.array([3]), ["a", "b", "c", "d"], np.array([0.5]))
    factor = drawn.shape[0] // side
    assert drawn.shape == (factor * side, 2 * factor * side, 3) and drawn.shape[0] >= 320
    assert not image.any()
    bottom = round(boxes[0, 3] * factor)
    colour = drawn[bottom - 1, round(0.3 * side * factor)]
    assert tuple(colour) == class_colour(3)  # the lower edge


def test_draw_boxes__none():
    image = np.full((400, 500, 3), 7, np.uint8)
    np.testing.assert_array_equal(draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int), []), image)


def test_class_colours_differ():
    assert len({class_colour(label) for label in range(90)}) == 90


def test_contact_sheet():
    sheet = contact_sheet([np.full((30, 40, 3), v, np.uint8) for v in (10, 20, 30)], columns=2, cell=80)
    assert sheet.shape == (164, 164, 3)
    assert sheet[30, 40, 0] == 10 and sheet[30, 120, 0] == 20 and sheet[110, 40, 0] == 30


def test_caption_leaves_the_picture():
    image = np.full((30, 240, 3), 9, np.uint8)
    captioned = caption(image, "ground truth")
    np.testing.assert_array_equal(captioned[-30:], image)
    assert captioned.shape[0] > 40 and (captioned[:-30] == 0).any()
