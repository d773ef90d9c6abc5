"""SSD's and darknet's changes of colour, zooming out and zooming in."""

import numpy as np
import pytest

from datamodules.photometric import darknet_colours, shift_hsv, ssd_colours
from datamodules.ssd_geometry import MEAN, crop, draw_windows, expand


def rng(seed=0):
    return np.random.default_rng(seed)


def coordinates(width=200, height=150):
    """A picture whose pixels say where they are: red is x, green is y."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


BOXES = np.array([[20, 10, 60, 50], [100, 60, 190, 140], [5, 120, 9, 124]], np.float32)


def test_hsv_by_hand():
    colours = np.array([[[200, 0, 0], [0, 0, 200], [100, 100, 100], [200, 100, 100]]], np.uint8)
    assert shift_hsv(colours, 60, 1, 1)[0].tolist()[:3] == [[0, 200, 0], [200, 0, 0], [100, 100, 100]]
    assert shift_hsv(colours, 0, 0, 1)[0].tolist()[0] == [200, 200, 200]
    assert shift_hsv(colours, 0, 1, 0.5)[0].tolist()[:3] == [[100, 0, 0], [0, 0, 100], [50, 50, 50]]
    assert shift_hsv(colours, 0, 1, 2)[0].tolist()[0] == [255, 0, 0]
    assert np.abs(shift_hsv(colours, 0, 2, 1)[0, 3].astype(int) - [200, 0, 0]).max() <= 1
    assert np.abs(shift_hsv(colours, 0, 1, 1).astype(int) - colours).max() <= 1


def test_ssd_colours__each_within_its_limits():
    image = np.full((2, 2, 3), 100, np.uint8)

    def levels(**option):
        none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
        return [int(ssd_colours(image, rng(seed), probability=1, **none | option)[0, 0, 0]) for seed in range(99)]

    brighter, contrast = levels(brightness=32.0), levels(contrast=0.5)
    assert 68 <= min(brighter) < 75 and 125 < max(brighter) <= 132
    assert 50 <= min(contrast) < 56 and 144 < max(contrast) <= 150
    assert all((ssd_colours(image, rng(s), probability=0) == 100).all() for s in range(5))
    changed = [(ssd_colours(coordinates(), rng(s)) != coordinates()).any() for s in range(60)]
    assert 0.8 < np.mean(changed) < 1  # all four are left out once in 16 times


def test_darknet_colours__values_are_multiplied_or_divided():
    image = np.full((2, 2, 3), 100, np.uint8)
    values = [int(darknet_colours(image, rng(s), hue=0, saturation=1)[0, 0, 0]) for s in range(99)]
    assert 66 <= min(values) < 72 and 140 < max(values) <= 150
    assert 0.35 < np.mean(np.array(values) < 100) < 0.65


def test_expand():
    image, sides = coordinates(), []
    for seed in range(40):
        done, boxes, positions = expand(image, BOXES, rng(seed), probability=1.0)
        left, top = (boxes - BOXES)[0, :2].astype(int)
        np.testing.assert_array_equal(boxes - BOXES, np.tile([left, top], (3, 2)))
        np.testing.assert_array_equal(done[top : top + 150, left : left + 200], image)
        outside = np.ones(done.shape[:2], bool)
        outside[top : top + 150, left : left + 200] = False
        assert (done[outside] == MEAN).all() and positions.tolist() == [0, 1, 2]
        sides.append(done.shape[1] / 200)
        assert done.shape[0] / 150 == pytest.approx(sides[-1], abs=0.02)
    assert 1 <= min(sides) < 1.3 and 3.7 < max(sides) < 4
    assert sum(expand(image, BOXES, rng(seed))[0] is image for seed in range(60)) in range(18, 43)


def test_crop__window_boxes_and_centres():
    image, windows = coordinates(), []
    for seed in range(60):
        done, boxes, kept = crop(image, BOXES, rng(seed))
        x1, y1 = done[0, 0, :2].astype(int)
        x2, y2 = done[-1, -1, :2].astype(int) + 1
        windows.append((x1, y1, x2, y2))
        centres = (BOXES[:, :2] + BOXES[:, 2:]) / 2
        inside = ((centres >= [x1, y1]) & (centres < [x2, y2])).all(1)
        assert kept.tolist() == np.flatnonzero(inside).tolist()
        expected = np.clip(BOXES - [x1, y1, x1, y1], 0, [x2 - x1, y2 - y1] * 2)[kept]
        np.testing.assert_array_equal(boxes, expected)
    whole = sum(window == (0, 0, 200, 150) for window in windows)
    assert 0 < whole < 30 and len(set(windows)) > 25


def test_crop__shows_enough_of_an_object():
    image = coordinates()
    good = 0
    for seed in range(40):
        done, _, _ = crop(image, BOXES[1:2], rng(seed), overlaps=(0.6,) * 9, trials=400)
        x1, y1, x2, y2 = *done[0, 0, :2].astype(int), *(done[-1, -1, :2].astype(int) + 1)
        width, height = min(x2, 190) - max(x1, 100), min(y2, 140) - max(y1, 60)
        common = max(width, 0) * max(height, 0)
        iou = common / ((x2 - x1) * (y2 - y1) + 90 * 80 - common)
        good += iou >= 0.6
    assert good >= 27  # 9 of the 11 choices: not the whole picture, and not the crop without a condition


def test_crop__without_objects_the_picture_stays():
    image = coordinates()
    for seed in range(5):
        done, boxes, kept = crop(image, np.zeros((0, 4), np.float32), rng(seed))
        assert done.shape == image.shape and boxes.shape == (0, 4) and len(kept) == 0


def test_windows_fit_and_have_the_scales_and_aspects_asked_for():
    windows = draw_windows(rng(), (500,), (300, 400), (0.3, 1.0), (0.5, 2.0))
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] <= [400, 300]).all()
    shares = (windows[:, 2:] - windows[:, :2]) / [400, 300]
    scale, aspect = shares.prod(1) ** 0.5, shares[:, 0] / shares[:, 1]
    assert 0.29 < scale.min() < 0.33 and 0.95 < scale.max() <= 1
    assert 0.48 < aspect.min() < 0.6 and 1.7 < aspect.max() < 2.05
