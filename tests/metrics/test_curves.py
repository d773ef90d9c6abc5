import json

import numpy as np
import pytest

from metrics.curves import detection_curves
from metrics.detection import DetectionMetric
from tests.metrics.synthetic import detections, ground_truth, random_case


def curves_of(truth, results, **options):
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    metric.compute()
    return detection_curves(metric, **options)


def example():
    """Two cats and a dog; found: a cat, the dog taken for a cat, a cat on background, the second cat badly placed."""
    boxes = [(0, 0, [0, 0, 20, 20]), (0, 0, [100, 0, 20, 20]), (1, 1, [0, 0, 30, 30])]
    truth = ground_truth(boxes, images=2, classes=2) | {"class_names": ["cat", "dog"]}
    first = detections((0, 0.9, [0, 0, 20, 20]), (0, 0.3, [110, 0, 20, 20]), (0, 0.6, [200, 200, 20, 20]))
    return truth, [first, detections((0, 0.8, [0, 0, 30, 28]), (1, 0.2, [0, 0, 30, 30]))]


def test_literal_values():
    curves = curves_of(*example())
    assert curves["class_names"] == ["cat", "dog"]
    # Cats: right, wrong, wrong, wrong; one of two found. Dogs: right.
    cat, dog = (curves["precision_recall"]["precision"][name] for name in ("cat", "dog"))
    assert cat == pytest.approx([1.0] * 51 + [0.0] * 50)
    assert dog == pytest.approx([1.0] * 101)
    assert curves["precision_recall"]["mean"] == pytest.approx([1.0] * 51 + [0.5] * 50)
    best = curves["best_f1"]
    assert best["classes"]["cat"] == pytest.approx(
        {"score_threshold": 0.9, "f1": 2 / 3, "precision": 1, "recall": 0.5}, abs=1e-6
    )
    assert best["classes"]["dog"] == pytest.approx(
        {"score_threshold": 0.2, "f1": 1, "precision": 1, "recall": 1}, abs=1e-6
    )
    # Over both classes at .9: 2 * 1 / (1 + 3); at .2: 2 * 2 / (5 + 3). The higher threshold of equals is taken.
    assert best["overall"] == pytest.approx(
        {"score_threshold": 0.9, "f1": 0.5, "precision": 1, "recall": 1 / 3}, abs=1e-6
    )
    overall = curves["f1"]["overall"]
    # Of 5, 4, 3, 2, 1 and no detections; 2 and then 1 of them find one of the three objects.
    steps = [0.5] * 21 + [2 / 7] * 10 + [2 / 6] * 30 + [2 / 5] * 20 + [2 / 4] * 9 + [0.0] * 11
    assert overall == pytest.approx(steps)


def test_a_detection_counts_if_its_score_is_not_below_the_threshold():
    curves = curves_of(ground_truth([(0, 0, [0, 0, 20, 20])]), [detections((0, 0.5, [0, 0, 20, 20]))])
    assert curves["f1"]["overall"] == [1.0] * 51 + [0.0] * 50
    assert curves["best_f1"]["overall"]["score_threshold"] == 0.5
    assert curves["confusion"]["matrix"] == [[1, 0], [0, 0]]


def test_literal_confusion():
    curves = curves_of(*example(), score_threshold=0.25)
    assert curves["confusion"]["score_threshold"] == 0.25
    assert curves["confusion"]["matrix"] == [
        [1, 0, 1],  # a cat found, a cat missed
        [1, 0, 0],  # the dog taken for a cat
        [2, 0, 0],  # two cats on background
    ]
    assert curves_of(*example())["confusion"]["matrix"] == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert curves_of(*example(), iou_threshold=0.3, score_threshold=0.25)["confusion"]["matrix"][0] == [2, 0, 0]


def test_crowds_and_difficult_objects_make_no_confusion():
    truth = ground_truth(
        [(0, 0, [0, 0, 100, 100]), (0, 1, [200, 0, 20, 20])], classes=2, iscrowd=[True, False], difficult=[False, True]
    )
    own = detections((0, 0.9, [10, 10, 20, 20]), (0, 0.9, [40, 40, 20, 20]), (1, 0.9, [200, 0, 20, 20]))
    assert curves_of(truth, [own], score_threshold=0.5)["confusion"]["matrix"] == [[0, 0, 0]] * 3
    foreign = detections((1, 0.9, [10, 10, 20, 20]), (0, 0.9, [200, 0, 20, 20]))
    assert curves_of(truth, [foreign], score_threshold=0.5)["confusion"]["matrix"] == [[0] * 3, [0] * 3, [1, 1, 0]]


def slow_confusion(truth, results, iou_threshold, score_threshold):
    """One image, one detection at a time."""
    classes = len(truth["class_names"])
    matrix = np.zeros((classes + 1, classes + 1), dtype=int)
    for image, result in enumerate(results):
        rows = np.flatnonzero(truth["image_index"] == image)
        taken = set()
        for d in np.argsort(-result["scores"], kind="stable"):
            label = result["labels"][d]
            if result["scores"][d] < score_threshold:
                continue
            x1, y1, x2, y2 = result["boxes"][d].astype(float)
            best, ignored_best = (iou_threshold, None), (iou_threshold, None)
            for i in rows:
                x, y, w, h = truth["boxes"][i]
                width, height = min(x2, x + w) - max(x1, x), min(y2, y + h) - max(y1, y)
                if width <= 0 or height <= 0:
                    continue
                own, both = (x2 - x1) * (y2 - y1), width * height
                if truth["iscrowd"][i]:
                    if truth["labels"][i] == label and both / own >= ignored_best[0]:
                        ignored_best = (both / own, i)
                elif i not in taken and both / (own + w * h - both) >= best[0]:
                    best = (both / (own + w * h - both), i)
            if best[1] is not None:
                taken.add(best[1])
                matrix[truth["labels"][best[1]], label] += 1
            elif ignored_best[1] is None:
                matrix[classes, label] += 1
        for i in rows:
            if not truth["iscrowd"][i] and i not in taken:
                matrix[truth["labels"][i], classes] += 1
    return matrix


@pytest.mark.parametrize("seed", range(5))
def test_confusion_equal_to_plain_loops(seed):
    truth, results = random_case(seed, grid=[1e-3, 10.0, 40.0][seed % 3])
    for iou, score in ((0.5, 0.3), (0.3, 0.0)):
        matrix = curves_of(truth, results, iou_threshold=iou, score_threshold=score)["confusion"]["matrix"]
        np.testing.assert_array_equal(matrix, slow_confusion(truth, results, iou, score))


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_best_of_all_thresholds(seed):
    truth, results = random_case(seed)
    curves = curves_of(truth, results)
    best = curves["best_f1"]["overall"]
    assert best["f1"] == pytest.approx(
        2 * best["precision"] * best["recall"] / (best["precision"] + best["recall"]), abs=1e-12
    )
    assert best["f1"] == pytest.approx(max(curves["f1"]["overall"]), abs=1e-12)  # all scores are multiples of .05
    # Counted anew from the detections that the threshold leaves.
    cut = [
        {key: values[result["scores"] >= best["score_threshold"]] for key, values in result.items()}
        for result in results
    ]
    assert curves_of(truth, cut)["f1"]["overall"][0] == pytest.approx(best["f1"], abs=1e-12)


def test_mean_of_curves_is_the_average_precision():
    truth, results = random_case(3)
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    values = metric.compute()
    mean = detection_curves(metric)["precision_recall"]["mean"]
    assert np.mean(mean) == pytest.approx(values["mAP_50"], abs=1e-12)


def test_json_and_absent_things():
    truth, results = random_case(0)
    curves = curves_of(truth, results)
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves
    assert curves["precision_recall"]["precision"]["class 3"] is None  # no such object
    assert curves["f1"]["classes"]["class 3"] is None
    assert curves["best_f1"]["classes"]["class 3"]["f1"] is None
    nothing = curves_of(truth, [detections() for _ in results])
    assert nothing["best_f1"]["overall"] == {"score_threshold": None, "f1": 0.0, "precision": None, "recall": 0.0}
    assert nothing["confusion"]["score_threshold"] == 0.0
    json.dumps(nothing, allow_nan=False)
    empty = curves_of(ground_truth([], images=2), [detections(), detections()])
    assert empty["precision_recall"]["mean"] is None
    json.dumps(empty, allow_nan=False)


def test_curves_need_a_computed_metric():
    assert detection_curves(DetectionMetric(ground_truth([]))) is None
