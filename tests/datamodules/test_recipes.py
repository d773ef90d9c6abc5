from functools import partial

import numpy as np
import pytest

from datamodules.recipes import AUGMENTATIONS, make_recipe, mosaic
from datamodules.transforms import Pixels

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250]], np.uint8)


class Blocks:
    """Five gray pictures with one block each, in its own colour; records which are read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(COLOURS)

    def load(self, index):
        self.read.append(index)
        image = np.full((90, 120, 3), 100, np.uint8)
        image[20:70, 40:100] = COLOURS[index]
        box = np.array([[40, 20, 100, 70]], np.float32)
        return image, {"boxes": box, "labels": np.array([index]), "iscrowd": np.array([index == 4])}

    def masks(self, objects, size):
        return np.array([mask_of(box, size) for box in objects["boxes"]])


def mask_of(box, size):
    mask = np.zeros(size, bool)
    x1, y1, x2, y2 = box.astype(int)
    mask[y1:y2, x1:x2] = True
    return mask


# What leaves colours, and so the blocks recognisable.
IN_COLOUR = {
    "ssd": {"colours": 0.0},
    "yolo": {"hue": 0.0, "saturation": 1.0, "exposure": 1.0},
    "yolo_crop": {"hue": 0.0, "saturation": 1.0, "exposure": 1.0},
    "mixup": {"probability": 0.0},
    "copy_paste": {"probability": 0.0},  # see test_copy_paste.py
}


def in_colour(name):
    return make_recipe(name, IN_COLOUR.get(name, {}), resize="fit")


def make(recipe, seed, pixels=None):
    dataset = Blocks()
    done, labels, crowds = recipe(dataset, 2, np.random.default_rng(seed), side=96, pixels=pixels)
    return dataset, done, labels, crowds


def assert_boxes_are_around_their_colours(done, labels):
    for box, label in zip(done.boxes, labels, strict=True):
        inside = done.image[tuple(slice(round(float(a)), round(float(b))) for a, b in (box[1::2], box[::2]))]
        off = np.abs(inside.astype(int) - COLOURS[label]).max(-1)
        assert (off < 60).mean() > 0.75, (box, label)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_and_labels_belong_together(name):
    found = 0
    for seed in range(40):
        _, done, labels, crowds = make(in_colour(name), seed)
        assert done.image.shape == (96, 96, 3) and len(done.boxes) == len(labels) == len(crowds)
        assert (done.boxes >= 0).all() and (done.boxes <= 96).all()
        large = (done.boxes[:, 2:] - done.boxes[:, :2]).min(1, initial=96) > 8
        assert_boxes_are_around_their_colours(done._replace(boxes=done.boxes[large]), labels[large])
        assert (crowds == (labels == 4)).all()
        found += len(labels)
    assert found > 20


def test_mosaic__four_pictures_around_a_centre():
    always = partial(mosaic, probability=1.0)
    counts, partners = [], set()
    for seed in range(60):
        dataset, _, labels, _ = make(always, seed)
        assert len(dataset.read) == 4 and dataset.read[0] == 2
        assert set(labels) <= set(dataset.read)
        partners.update(dataset.read[1:])
        counts.append(len(labels))
    assert partners == set(range(5)) and max(counts) == 4 and np.mean(counts) > 2


def test_mosaic__slivers_are_dropped_and_all_parts_of_pictures_are_seen():
    always = partial(mosaic, probability=1.0, scale_range=(2.0, 2.0))  # the block has 96 x 80 pixels, more than fits
    shares, seen = [], []
    for seed in range(60):
        _, done, _, _ = make(always, seed)
        shares += ((done.boxes[:, 2:] - done.boxes[:, :2]).prod(1) / (96 * 80)).tolist()
        gray = (np.abs(done.image[:20, :20].astype(int) - 100).max(-1) < 5).mean()
        seen.append(gray)
    assert 0.25 <= min(shares) < 0.4
    assert min(seen) < 0.5 < max(seen)  # not always the same corner


def test_mosaic__probability():
    reads = [len(make(mosaic, seed)[0].read) for seed in range(60)]
    assert set(reads) == {1, 4} and 15 < reads.count(4) < 45


def test_pixels_come_before_geometry():
    inverted = Pixels([{"class_path": "InvertImg", "init_args": {"p": 1.0}}])
    for name in AUGMENTATIONS:
        _, done, _, _ = make(in_colour(name), 3, inverted)
        near = [(np.abs(done.image.astype(int) - grey).max(-1) < 3).mean() for grey in (155, 100)]
        assert near[0] > 0.05 and near[1] < 0.01, name


def test_pixels_that_drop_a_box_drop_its_label_and_crowd_mark():
    class TwoBlocks(Blocks):
        def load(self, index):
            image, objects = super().load(index)
            boxes = np.concatenate([np.array([[0, 0, 10, 10]], np.float32), objects["boxes"]])
            return image, {"boxes": boxes, "labels": np.array([0, 3]), "iscrowd": np.array([True, False])}

    crop = Pixels([{"class_path": "Crop", "init_args": {"x_min": 30, "y_min": 10, "x_max": 110, "y_max": 80}}])
    done, labels, crowds = AUGMENTATIONS["none"](TwoBlocks(), 3, np.random.default_rng(0), side=80, pixels=crop)
    assert labels.tolist() == [3] and crowds.tolist() == [False]
    np.testing.assert_allclose(done.boxes, [[10, 10, 70, 60]], atol=1e-3)
    assert_boxes_are_around_their_colours(done, labels)
