"""Fusion of detections: cases worked out by hand."""

import pytest
import torch

from models.detection.boxes import pairwise_iou
from models.detection.postprocessing.fusion import Suppression, WeightedBoxFusion
from models.detection.postprocessing.nms import HardNMS, SoftNMS


def sources(*images, places=3):
    """Per image a list of sources, each a list of (x1, y1, x2, y2, score, label)."""
    shape = len(images), len(images[0]), places
    boxes, scores, labels = torch.zeros(*shape, 4), torch.zeros(shape), torch.full(shape, -1)
    for i, image in enumerate(images):
        for v, source in enumerate(image):
            for n, (*box, score, label) in enumerate(source):
                boxes[i, v, n], scores[i, v, n], labels[i, v, n] = torch.tensor(box), score, label
    return boxes, scores, labels


def rows(detections, image=0):
    """What was found: [x1, y1, x2, y2, score, label] rounded."""
    found = detections["labels"][image] >= 0
    assert (detections["scores"][image][~found] == 0).all() and (detections["boxes"][image][~found] == 0).all()
    columns = [detections["boxes"][image][found], detections["scores"][image][found, None]]
    values = torch.cat([*columns, detections["labels"][image][found, None].float()], 1)
    return [[round(v, 4) for v in row] for row in values.tolist()]


# Both sources see an object (their overlap is 100 / 120); each sees one more alone, of another class or elsewhere.
TWO = [
    [(0, 0, 10, 10, 0.8, 1), (30, 30, 40, 40, 0.9, 1)],
    [(0, 0, 10, 12, 0.4, 1), (0, 0, 10, 10, 0.6, 2)],
]


def test_weighted_boxes():
    found = WeightedBoxFusion()(*sources(TWO), 5)
    assert found["scores"].shape == (1, 5) and found["boxes"].shape == (1, 5, 4)
    # (.8 * 10 + .4 * 12) / 1.2 = 10.6667 and (.8 + .4) / 2 = .6; halved where one of two sources found it.
    assert rows(found) == [[0, 0, 10, 10.6667, 0.6, 1], [30, 30, 40, 40, 0.45, 1], [0, 0, 10, 10, 0.3, 2]]


def test_weighted_boxes__more_boxes_than_sources_count_no_more_than_all():
    # 3 boxes of 2 sources: mean score (.9 + .6 + .3) / 3 = .6, not .6 * 3 / 2.
    case = [[(0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.3, 0)], [(0, 0, 10, 10, 0.6, 0)]]
    assert rows(WeightedBoxFusion()(*sources(case), 3)) == [[0, 0, 10, 10, 0.6, 0]]


def test_weighted_boxes__the_fused_box_moves_and_is_what_the_next_is_compared_with():
    # 10 x 10 and 10 x 16 of equal scores (overlap .625) make 10 x 13: 10 x 21 overlaps that by 13 / 21 = .62, but the
    # first box by .48 and would begin a cluster of its own.
    case = [[(0, 0, 10, 10, 0.8, 0)], [(0, 0, 10, 16, 0.8, 0)], [(0, 0, 10, 21, 0.4, 0)]]
    (row,) = rows(WeightedBoxFusion()(*sources(case), 3))
    assert row == [0, 0, 10, round((8 + 12.8 + 8.4) / 2, 4), round(2 / 3, 4), 0]


def test_weighted_boxes__the_best_overlap_wins_and_thresholds():
    case = [[(0, 0, 10, 10, 0.9, 0), (4, 0, 14, 10, 0.8, 0)], [(3, 0, 13, 10, 0.5, 0), (0, 0, 10, 10, 0.05, 0)]]
    found = rows(WeightedBoxFusion(iou_threshold=0.5, score_threshold=0.05)(*sources(case), 3))
    # 3 to 13 overlaps 0 to 10 by 7 / 13 and 4 to 14 by 9 / 11; .05 is left out.
    assert found[0] == [round((0.8 * 4 + 1.5) / 1.3, 4), 0, round((0.8 * 14 + 6.5) / 1.3, 4), 10, 0.65, 0]
    assert found[1] == [0, 0, 10, 10, 0.45, 0]
    assert len(rows(WeightedBoxFusion(iou_threshold=0.9)(*sources(case), 4))) == 3


def test_weighted_boxes__images_of_a_batch_do_not_meet_and_the_limit():
    other = [[(0, 0, 4, 4, 0.5, 0)], []]
    batch = WeightedBoxFusion()(*sources(TWO, other), 2)
    assert rows(batch, 0) == rows(WeightedBoxFusion()(*sources(TWO), 5))[:2]
    assert rows(batch, 1) == [[0, 0, 4, 4, 0.25, 0]]
    nothing = WeightedBoxFusion()(*sources([[], []]), 4)
    assert rows(nothing) == [] and nothing["labels"].tolist() == [[-1] * 4]


def test_suppression_of_all_sources_together():
    hard = rows(Suppression(nms=HardNMS(iou_threshold=0.5))(*sources(TWO), 4))
    assert hard == [[30, 30, 40, 40, 0.9, 1], [0, 0, 10, 10, 0.8, 1], [0, 0, 10, 10, 0.6, 2]]
    soft = rows(Suppression(nms=SoftNMS(sigma=0.5))(*sources(TWO), 4))
    lowered = 0.4 * 2.718281828 ** (-((100 / 120) ** 2) / 0.5)
    assert soft[:3] == hard and soft[3] == [0, 0, 10, 12, pytest.approx(lowered, abs=1e-4), 1]


def fused_one_by_one(boxes, scores, labels, threshold):
    """Weighted box fusion of one image as the paper tells it, step by step: rows as `rows` gives them."""
    found = [
        (s, b, k) for s, b, k in zip(scores.flatten(), boxes.flatten(0, 1), labels.flatten(), strict=True) if s > 0
    ]
    clusters = []  # lists of (score, box, label)
    for score, box, label in sorted(found, key=lambda entry: -entry[0]):
        overlaps = [
            pairwise_iou(box[None], mean_box(cluster)[None]).item() if cluster[0][2] == label else 0.0
            for cluster in clusters
        ]
        best = max(range(len(clusters)), key=lambda i: overlaps[i], default=None)
        if best is not None and overlaps[best] > threshold:
            clusters[best].append((score, box, label))
        else:
            clusters.append([(score, box, label)])
    result = []
    for cluster in clusters:
        mean = sum(score for score, _, _ in cluster) / len(cluster)
        score = mean * min(len(cluster), len(scores)) / len(scores)
        result.append([*mean_box(cluster).tolist(), score.item(), float(cluster[0][2])])
    return sorted(result, key=lambda row: -row[4])


def mean_box(cluster):
    return sum(score * box for score, box, _ in cluster) / sum(score for score, _, _ in cluster)


def test_weighted_boxes__as_told_step_by_step():
    torch.manual_seed(0)
    corners = torch.rand(3, 4, 12, 2) * 20
    boxes = torch.cat([corners, corners + 8 + 6 * torch.rand(3, 4, 12, 2)], -1)
    scores = torch.rand(3, 4, 12) * (torch.rand(3, 4, 12) < 0.8)
    labels = torch.randint(2, (3, 4, 12)).where(scores > 0, -1)
    found = WeightedBoxFusion(iou_threshold=0.4)(boxes, scores, labels, 48)
    for image in range(3):
        expected = fused_one_by_one(boxes[image], scores[image], labels[image], 0.4)
        assert 5 < len(expected) < 35
        torch.testing.assert_close(torch.tensor(rows(found, image)), torch.tensor(expected), atol=2e-4, rtol=0)
