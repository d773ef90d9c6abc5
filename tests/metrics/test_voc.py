import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.detection import DetectionMetric
from metrics.voc import area_under_curve, eleven_point_precision
from tests.metrics.synthetic import detections, ground_truth, random_case


def slow_average_precision(truth, results, label, threshold, eleven_points):
    """The development kit's loops, written out: one detection at a time."""
    order = sorted(range(len(results)), key=lambda index: truth["image_ids"][index])
    found = [
        (float(score), image, box.astype(np.float64))
        for image in order
        for box, score, of in zip(*(results[image][key] for key in ("boxes", "scores", "labels")), strict=True)
        if of == label
    ]
    found.sort(key=lambda one: -one[0])  # stable
    ignored = truth["difficult"] | truth["iscrowd"]
    total = sum(1 for of, hard in zip(truth["labels"], ignored, strict=True) if of == label and not hard)
    if not total:
        return float("nan")
    taken, curve, true, false = set(), [], 0, 0
    for _, image, (x1, y1, x2, y2) in found:
        best, target = -1.0, None
        for i in np.flatnonzero((truth["image_index"] == image) & (truth["labels"] == label)):
            x, y, w, h = truth["boxes"][i]
            width, height = min(x2, x + w) - max(x1, x), min(y2, y + h) - max(y1, y)
            if width <= 0 or height <= 0:
                continue
            overlap = width * height / ((x2 - x1) * (y2 - y1) + w * h - width * height)
            if overlap > best:
                best, target = overlap, i
        if best >= threshold:
            if not ignored[target]:
                true, false = (true, false + 1) if target in taken else (true + 1, false)
                taken.add(target)
        else:
            false += 1
        curve.append((true / total, true / (true + false) if true + false else 0.0))
    if eleven_points:
        return sum(max([p for r, p in curve if r >= k * 0.1], default=0.0) for k in range(11)) / 11
    area, last = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return area


def computed(truth, results, **options):
    metric = DetectionMetric(truth, **options)
    metric.update(np.arange(len(results)), results)
    return metric.compute()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    protocol=st.sampled_from(["voc07", "voc12"]),
    threshold=st.sampled_from([0.3, 0.5, 0.9]),
    grid=st.sampled_from([1e-3, 10.0, 50.0]),
)
def test_equal_to_the_kit_written_out(seed, protocol, threshold, grid):
    truth, results = random_case(seed, images=6, classes=3, found=15, grid=grid)
    truth["difficult"] = np.random.default_rng(seed).random(len(truth["labels"])) < 0.3
    truth["difficult"] &= ~truth["iscrowd"]
    values = computed(truth, results, protocol=protocol, iou_thresholds=[threshold])
    slow = [slow_average_precision(truth, results, label, threshold, protocol == "voc07") for label in range(3)]
    np.testing.assert_allclose([values[f"AP/class {k}"] for k in range(3)], slow, rtol=0, atol=1e-12)
    assert values[f"mAP_{100 * threshold:g}"] == values["mAP"]
    np.testing.assert_allclose(values["mAP"], np.nan if np.isnan(slow).all() else np.nanmean(slow), rtol=0, atol=1e-12)


def test_literal_curves():
    """Two of three objects found: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3."""
    recall, precision = np.array([1, 1, 2]) / 3, np.array([1, 1 / 2, 2 / 3])
    assert eleven_point_precision(recall, precision) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert area_under_curve(recall, precision) == pytest.approx(1 / 3 + 2 / 9)
    nothing = np.zeros(0)
    assert eleven_point_precision(nothing, nothing) == area_under_curve(nothing, nothing) == 0


def test_literal_protocols():
    truth = ground_truth([(0, 0, [0, 0, 10, 10]), (0, 0, [50, 50, 10, 10]), (1, 0, [0, 0, 20, 20])], images=2)
    results = [
        detections((0, 0.9, [0, 0, 10, 10]), (0, 0.7, [50, 50, 10, 9])),
        detections((0, 0.8, [100, 100, 20, 20])),
    ]
    seven, twelve = (computed(truth, results, protocol=name) for name in ("voc07", "voc12"))
    assert seven["mAP_50"] == seven["mAP"] == seven["AP/class 0"] == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert twelve["mAP_50"] == twelve["mAP"] == twelve["AP/class 0"] == pytest.approx(1 / 3 + 2 / 9)
    assert set(seven) == {"mAP", "mAP_50", "AP/class 0"}


def test_a_second_detection_is_wrong_even_if_it_overlaps_a_free_object():
    """VOC looks at the object of most overlap only; COCO would give the second detection the other object."""
    truth = ground_truth([(0, 0, [0, 0, 10, 10]), (0, 0, [0, 2, 10, 10])])
    results = [detections((0, 0.9, [0, 0, 10, 10]), (0, 0.8, [0, 0.5, 10, 10]))]
    assert computed(truth, results, protocol="voc12")["mAP"] == pytest.approx(0.5)
    assert computed(truth, results, iou_thresholds=[0.5])["mAP"] == pytest.approx(1)


def test_difficult_objects_count_neither_way():
    truth = ground_truth([(0, 0, [0, 0, 10, 10]), (0, 0, [50, 50, 10, 10])], difficult=[True, False])
    results = [detections((0, 0.9, [0, 0, 10, 10]), (0, 0.8, [0, 0, 10, 10]), (0, 0.7, [50, 50, 10, 10]))]
    assert computed(truth, results, protocol="voc12")["mAP"] == pytest.approx(1)
    assert computed(truth, results, protocol="voc07")["mAP"] == pytest.approx(1)


def test_inclusive_pixels_become_half_open_boxes():
    """VOC's (1, 1, 10, 10) has ten pixels a side: half of it is (1, 1, 10, 5), an overlap of exactly .5."""
    truth = ground_truth([(0, 0, [0, 0, 10, 10])])
    half = [detections((0, 0.9, [0, 0, 10, 5]))]
    assert computed(truth, half, protocol="voc07")["mAP_50"] == pytest.approx(1)


def test_all_detections_count():
    """COCO cuts at a hundred per image and class, VOC does not."""
    truth = ground_truth([(0, 0, [0, 0, 10, 10])])
    rows = [(0, 0.9, [100, 100, 10, 10])] * 120 + [(0, 0.5, [0, 0, 10, 10])]
    assert computed(truth, [detections(*rows)], protocol="voc12")["mAP"] == pytest.approx(1 / 121)
    assert computed(truth, [detections(*rows)])["mAP"] == 0
