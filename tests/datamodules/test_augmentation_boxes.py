"""Boxes follow the pixels: every object is a rectangle of its own colour, so its box can be read off the picture."""

from functools import partial

import numpy as np
import pytest

from datamodules.copy_paste import Scene, outline, paste
from datamodules.recipes import AUGMENTATIONS, make_recipe, mixup
from datamodules.transforms import Pixels, Transformed
from errors import UserError

GREY = 100
# Per picture XYXY boxes that do not overlap; some reach the border, the last of the first picture is tiny.
BOXES = [
    [[0, 10, 30, 60], [40, 20, 100, 44], [60, 60, 120, 90], [8, 70, 11, 74]],
    [[10, 5, 50, 85], [70, 30, 110, 70]],
    [],
]
SIZES = [(90, 120), (90, 120), (100, 60)]
# 0, 120 or 240 per channel, no two objects alike, none near the background.
CODES = np.array([(0, 0, 240), (0, 240, 0), (240, 0, 0), (240, 240, 0), (240, 0, 240), (0, 240, 240)], np.uint8)


class Rectangles:
    """Three pictures, the third without objects; an object's label is the row of its colour, label 5 is a crowd."""

    def __len__(self):
        return len(BOXES)

    def load(self, index):
        image = np.full((*SIZES[index], 3), GREY, np.uint8)
        labels = np.arange(len(BOXES[index])) + 4 * (index == 1)
        for (x1, y1, x2, y2), label in zip(BOXES[index], labels, strict=True):
            image[y1:y2, x1:x2] = CODES[label]
        boxes = np.array(BOXES[index], np.float32).reshape(-1, 4)
        return image, {"boxes": boxes, "labels": labels, "iscrowd": labels == 5}

    def masks(self, objects, size):
        masks = np.zeros((len(objects["boxes"]), *size), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, objects["boxes"].astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        return masks


def seen(image, label):
    """Where the colour of an object is, (H, W) bool."""
    return np.abs(image.astype(int) - CODES[label]).max(-1) < 90


def assert_boxes_are_those_of_the_pixels(done, labels, tolerance=1.5):
    for box, label in zip(done.boxes, labels, strict=True):
        grown = np.clip([*np.floor(box[:2] - 3), *np.ceil(box[2:] + 3)], 0, 128).astype(int)
        part = seen(done.image[grown[1] : grown[3], grown[0] : grown[2]], label)
        if (box[2:] - box[:2]).min() < 4 and not part.any():
            continue  # a line of mixed colours at the border
        found = outline(part) + np.tile(grown[:2], 2)
        np.testing.assert_allclose(found, box, atol=tolerance, err_msg=f"label {label}")


OPTIONS = {
    "ssd": {"colours": 0.0, "max_ratio": 2.0},
    "yolo": {"hue": 0.0, "saturation": 1.0, "exposure": 1.0},
    "yolo_crop": {"hue": 0.0, "saturation": 1.0, "exposure": 1.0},
    "mosaic": {"probability": 1.0},
    "mixup": {"probability": 0.0},  # see below
    "copy_paste": {"scale_range": (0.8, 1.25)},
}


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in ("large_scale_jitter", "none")])
def test_boxes_are_those_of_the_pixels(name):
    recipe = make_recipe(name, OPTIONS.get(name, {}), resize="stretch")
    labels_seen = set()
    for index in range(3):
        for seed in range(25):
            rng = np.random.default_rng((index, seed))
            done, labels, crowds = recipe(Rectangles(), index, rng, side=128, pixels=None)
            assert done.image.shape == (128, 128, 3) and len(done.boxes) == len(labels) == len(crowds)
            assert (crowds == (labels == 5)).all()
            if len(set(labels.tolist())) == len(labels):  # else a picture was mixed with itself
                assert_boxes_are_those_of_the_pixels(done, labels)
            labels_seen |= set(labels.tolist())
            assert index < 2 or name in ("mosaic", "copy_paste") or not len(labels)
    assert labels_seen == set(range(6))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_stream_gives_the_same_sample(name):
    for seed in range(3):
        first, second = (
            AUGMENTATIONS[name](Rectangles(), 0, np.random.default_rng(seed), side=64, pixels=None) for _ in range(2)
        )
        np.testing.assert_array_equal(first[0].image, second[0].image)
        np.testing.assert_array_equal(first[0].boxes, second[0].boxes)


def test_mixup_blends_two_samples_and_takes_the_objects_of_both():
    data, base = Rectangles(), partial(AUGMENTATIONS["efficientdet_mild"], side=96, pixels=None)
    weights = []
    for seed in range(20):
        done, labels, crowds = mixup(data, 0, np.random.default_rng(seed), side=96, pixels=None, probability=1.0)
        rng = np.random.default_rng(seed)
        first, first_labels, _ = base(data, 0, rng)
        rng.uniform()
        second, second_labels, _ = base(data, int(rng.integers(3)), rng)
        weight = rng.beta(1.5, 1.5)
        expected = weight * first.image.astype(float) + (1 - weight) * second.image
        np.testing.assert_allclose(done.image, expected, atol=0.51)
        np.testing.assert_array_equal(done.boxes, np.concatenate([first.boxes, second.boxes]))
        assert labels.tolist() == [*first_labels, *second_labels] and (crowds == (labels == 5)).all()
        assert done.size == (max(first.size[0], second.size[0]), max(first.size[1], second.size[1]))
        weights.append(weight)
    assert min(weights) < 0.3 and max(weights) > 0.7


def test_mixup_of_another_recipe():
    done, _, _ = mixup(Rectangles(), 0, np.random.default_rng(0), side=96, pixels=None, probability=0.0, of="none")
    assert done.size == (72, 96)
    with pytest.raises(UserError, match=r"augmentation_options\.of is 'mixup'; choose"):
        mixup(Rectangles(), 0, np.random.default_rng(0), side=96, pixels=None, of="mixup")


def scene(colour, *objects, side=20):
    """A picture of one gray with objects (x1, y1, x2, y2, label); label 9 is a crowd."""
    image = np.full((side, side, 3), colour, np.uint8)
    masks = np.zeros((len(objects), side, side), bool)
    for mask, (x1, y1, x2, y2, label) in zip(masks, objects, strict=True):
        mask[y1:y2, x1:x2] = True
        image[mask] = label
    boxes = np.array([o[:4] for o in objects], np.float32).reshape(-1, 4)
    labels = np.array([o[4] for o in objects], np.int64)
    done = Transformed(image, boxes, np.arange(len(objects)), (side, side), (1.0, 1.0))
    return Scene(done, labels, labels == 9, masks)


def test_paste_by_hand():
    behind = scene(100, (0, 0, 10, 10, 1), (12, 12, 18, 18, 2), (0, 12, 4, 20, 3), (14, 0, 20, 4, 9))
    before = scene(200, (5, 0, 15, 11, 7), (11, 11, 19, 19, 8))
    done, labels, crowds = paste(behind, before, 0.1)
    # 1 loses its right half, 2 is buried, 3 is untouched, the crowd loses its first column.
    assert labels.tolist() == [1, 3, 9, 7, 8] and crowds.tolist() == [False, False, True, False, False]
    expected = [[0, 0, 5, 10], [0, 12, 4, 20], [15, 0, 20, 4], [5, 0, 15, 11], [11, 11, 19, 19]]
    assert done.boxes.tolist() == expected
    assert done.image[5, 7].tolist() == [7] * 3 and done.image[5, 3].tolist() == [1] * 3
    assert done.image[0, 12].tolist() == [7] * 3, "only objects are pasted, with their own pixels"
    assert done.image[19, 19].tolist() == [100] * 3


def test_paste__a_hole_in_the_middle_leaves_the_box():
    done, labels, _ = paste(scene(100, (0, 0, 10, 10, 1)), scene(200, (3, 3, 7, 7, 2)), 0.1)
    assert done.boxes.tolist() == [[0, 0, 10, 10], [3, 3, 7, 7]] and labels.tolist() == [1, 2]


def test_paste__least_visible_share():
    behind, before = scene(100, (0, 0, 10, 10, 1)), scene(200, (0, 0, 10, 8, 2))
    assert paste(behind, before, 0.2)[1].tolist() == [1, 2]
    assert paste(behind, before, 0.21)[1].tolist() == [2]


def test_paste__nothing_and_into_padding():
    behind = scene(100, (0, 0, 10, 10, 1))
    behind.done = behind.done._replace(size=(12, 10))
    done, labels, _ = paste(behind, scene(200), 0.1)
    assert labels.tolist() == [1] and done.size == (12, 10)
    np.testing.assert_array_equal(done.image, behind.done.image)
    assert paste(behind, scene(200, (12, 2, 18, 5, 2)), 0.1)[0].size == (12, 18)


def test_copy_paste__crowds_are_never_pasted_and_masks_follow_the_users_transforms():
    counts = {0: 0, 4: 0, 5: 0}
    turned = Pixels([{"class_path": "VerticalFlip", "init_args": {"p": 1.0}}])
    recipe = make_recipe("copy_paste", {"scale_range": (0.8, 1.25), "share": 1.0}, resize="fit")
    for seed in range(30):
        done, labels, _ = recipe(Rectangles(), 2, np.random.default_rng(seed), side=128, pixels=turned)
        assert_boxes_are_those_of_the_pixels(done, labels)
        for label in counts:
            counts[label] += int((labels == label).sum())
    assert counts[0] > 3 and counts[4] > 3 and counts[5] == 0


def test_copy_paste__objects_that_were_pasted_hide_others():
    """Seen in the pictures: a box that shrank is that of the pixels still to be seen."""
    recipe = make_recipe("copy_paste", {"scale_range": (0.9, 1.1), "share": 1.0}, resize="fit")
    full = {label: np.prod(np.diff(np.reshape(box, (2, 2)), axis=0)) for label, box in enumerate(BOXES[0] + BOXES[1])}
    shrunken = 0
    for seed in range(30):
        done, labels, _ = recipe(Rectangles(), 0, np.random.default_rng(seed), side=128, pixels=None)
        if len(set(labels.tolist())) < len(labels):
            continue
        assert_boxes_are_those_of_the_pixels(done, labels)
        areas = (done.boxes[:, 2:] - done.boxes[:, :2]).prod(1)
        shrunken += sum(area < 0.5 * full[label] for area, label in zip(areas, labels.tolist(), strict=True))
    assert shrunken > 2


def test_options_are_checked():
    with pytest.raises(UserError, match="has 'strength', which ssd does not know; it has colours, expand_"):
        make_recipe("ssd", {"strength": 1}, resize="fit")
    with pytest.raises(UserError, match="which none does not know; it has none"):
        make_recipe("none", {"scale_range": (1, 2)}, resize="fit")
