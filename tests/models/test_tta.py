"""Views of a batch and back; a detector that finds coloured rectangles shows where everything ends up."""

import pytest
import torch

from errors import UserError
from models.detection.detector import Detector
from models.detection.postprocessing.fusion import Suppression
from models.detection.postprocessing.nms import HardNMS
from models.detection.postprocessing.tta import TestTimeAugmentation, _make_view


class FindsWhite(Detector):
    """The one white rectangle of every picture, with the share of its columns as score; counts its passes."""

    def __init__(self, size_divisor=16):
        super().__init__(num_classes=1, image_size=64, size_divisor=size_divisor, mean=(0, 0, 0), std=(1, 1, 1))
        self.seen = []

    def forward(self, images):
        assert images.shape[2] % self.size_divisor == 0 == images.shape[3] % self.size_divisor
        self.seen.append(images)
        return {"white": images[:, 0] > 0.7}

    def loss_terms(self, outputs, targets, image_size):
        return {}

    def detect(self, outputs, image_size):
        boxes, scores = [], []
        for white in outputs["white"]:
            columns, rows = white.any(0).nonzero(), white.any(1).nonzero()
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            scores.append(len(columns) / white.shape[1])
        boxes = torch.tensor(boxes, dtype=torch.float32)[:, None]
        padding = torch.zeros(len(boxes), 1)
        return {
            "boxes": torch.cat([boxes, torch.zeros_like(boxes)], 1),
            "scores": torch.cat([torch.tensor(scores)[:, None], padding], 1),
            "labels": torch.cat([padding, padding - 1], 1).long(),
        }


def batch():
    """Two pictures in a frame of 64: one fills it, one is 48 high and 40 wide."""
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[0, :, 8:24, 4:36] = 255
    images[1, :, 20:44, 10:20] = 255
    return images, torch.tensor([[64, 64], [48, 40]]), torch.tensor([[4.0, 8, 36, 24], [10, 20, 20, 44]])


def run(detector, augmentation, plain=None):
    images, sizes, boxes = batch()

    def detect(view, images, sizes):
        return detector.detect(detector(detector.preprocess(images, sizes)), sizes)

    return augmentation(detect, images, sizes, detector.size_divisor, plain), boxes


def test_one_view_is_plain_detection_digit_by_digit():
    detector = FindsWhite()
    found, _ = run(detector, TestTimeAugmentation(flip=False))
    images, sizes, _ = batch()
    plain = detector.detect(detector(detector.preprocess(images, sizes)), sizes)
    assert found.keys() == plain.keys() and all(torch.equal(found[key], plain[key]) for key in plain)
    known, _ = run(detector, TestTimeAugmentation(flip=False), plain)
    assert known is plain and len(detector.seen) == 2


def test_mirrored_view_mirrors_each_picture_within_its_own_width():
    images, sizes, _ = batch()
    view, mirrored, same = _make_view(images, sizes, 1, True, 16)
    assert torch.equal(mirrored[0], images[0].flip(-1)) and torch.equal(same, sizes)
    assert torch.equal(mirrored[1, :, :, :40], images[1, :, :, :40].flip(-1)) and not mirrored[1, :, :, 40:].any()
    boxes = torch.tensor([[[4.0, 8, 36, 24]], [[10, 20, 20, 44]]])
    there = view.boxes_to(boxes)
    assert there.tolist() == [[[28, 8, 60, 24]], [[20, 20, 30, 44]]]
    assert torch.equal(view.boxes_from(there), boxes)


@pytest.mark.parametrize("fusion", [None, Suppression(nms=HardNMS(iou_threshold=0.6))])
def test_boxes_come_back_from_every_view(fusion):
    detector = FindsWhite()
    found, boxes = run(detector, TestTimeAugmentation(scales=(1.0, 0.5, 1.5, 1.3), flip=True, fusion=fusion))
    assert [tuple(seen.shape[2:]) for seen in detector.seen[::2]] == [(64, 64), (32, 32), (96, 96), (80, 80)]
    assert found["labels"].tolist() == [[0, -1], [0, -1]] and found["boxes"].shape == (2, 2, 4)
    torch.testing.assert_close(found["boxes"][:, 0], boxes, atol=1.0, rtol=0)
    assert (found["boxes"][:, 1] == 0).all()


def test_each_view_alone():
    for scale in (0.5, 1.25, 2.0):
        found, boxes = run(FindsWhite(), TestTimeAugmentation(scales=(scale,), flip=False))
        torch.testing.assert_close(found["boxes"][:, 0], boxes, atol=1.0, rtol=0)


def test_bad_scales():
    for scales in ((), (1.0, 0)):
        with pytest.raises(UserError, match="test_time_augmentation's scales are"):
            TestTimeAugmentation(scales=scales)
