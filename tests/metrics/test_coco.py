import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.detection import MeanAveragePrecision

from errors import UserError
from metrics.coco import coco_evaluation
from metrics.detection import DetectionMetric
from tests.metrics.synthetic import detections, ground_truth, pycocotools_evaluation, random_case

STATS = (
    "mAP", "mAP_50", "mAP_75", "mAP_small", "mAP_medium", "mAP_large",
    "mAR_1", "mAR_10", "mAR_100", "mAR_small", "mAR_medium", "mAR_large",
)  # fmt: skip


def computed(truth, results, **options):
    metric = DetectionMetric(truth, **options)
    metric.update(np.arange(len(results)), results)
    return metric, metric.compute()


def assert_equal_to_pycocotools(truth, results):
    metric, values = computed(truth, results)
    evaluation = pycocotools_evaluation(truth, metric.coco_results())
    stats = np.where(evaluation.stats > -1, evaluation.stats, np.nan)
    np.testing.assert_allclose([values[name] for name in STATS], stats, rtol=0, atol=1e-12)
    # Everything behind these twelve numbers, per class above all.
    precision, recall = coco_evaluation(*metric.flat(metric.gathered), len(truth["class_names"]))
    theirs = {name: np.where(evaluation.eval[name] > -1, evaluation.eval[name], np.nan) for name in evaluation.eval
              if name in ("precision", "recall")}  # fmt: skip
    np.testing.assert_allclose(precision, theirs["precision"][..., -1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall, theirs["recall"], rtol=0, atol=1e-12)
    for k, name in enumerate(truth["class_names"]):
        np.testing.assert_allclose(values[f"AP/{name}"], theirs["precision"][:, :, k, 0, -1].mean(), rtol=0, atol=1e-12)
    return values


@pytest.mark.parametrize("grid", [1e-3, 10.0, 40.0])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(seed, grid):
    values = assert_equal_to_pycocotools(*random_case(seed, grid=grid))
    assert 0 < values["mAP"] < values["mAP_50"] < 1
    assert np.isnan(values["AP/class 3"])  # no such object


def test_equal_to_pycocotools_with_more_than_a_hundred_detections_of_a_class():
    truth, results = random_case(0, images=3, classes=1, objects=9, found=230)
    assert max(len(result["scores"]) for result in results) == 230
    assert_equal_to_pycocotools(truth, results)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(1, 6),
    classes=st.integers(1, 3),
    objects=st.integers(0, 6),
    found=st.integers(0, 15),
    grid=st.sampled_from([1e-3, 10.0, 50.0]),
)
def test_equal_to_pycocotools_on_any_set(**case):
    assert_equal_to_pycocotools(*random_case(**case))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), batch_size=st.integers(1, 13))
def test_batches_and_their_order_do_not_matter(seed, batch_size):
    truth, results = random_case(seed, images=10)
    _, expected = computed(truth, results)
    metric = DetectionMetric(truth)
    order = np.random.default_rng(seed).permutation(len(results))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        metric.update(indices, [results[i] for i in indices])
    np.testing.assert_array_equal(list(metric.compute().values()), list(expected.values()))


def test_literal_values():
    """One object found at IoU .8 with the second-best detection, one missed: precision 1/2 up to recall 1/2."""
    truth = ground_truth([(0, 0, [0, 0, 10, 10]), (0, 0, [50, 50, 100, 100])])
    results = [detections((0, 0.9, [200, 200, 10, 10]), (0, 0.8, [0, 0, 10, 8]))]
    _, values = computed(truth, results)
    assert values["mAP_50"] == values["mAP_75"] == pytest.approx(51 * 0.5 / 101, abs=1e-12)
    assert values["mAP"] == pytest.approx(51 * 0.5 / 101 * 7 / 10, abs=1e-12)  # .50 to .80
    assert values["mAP_small"] == pytest.approx(0.5 * 7 / 10, abs=1e-12)
    assert values["mAP_large"] == 0
    assert np.isnan(values["mAP_medium"])
    assert values["mAR_1"] == 0
    assert values["mAR_100"] == pytest.approx(0.5 * 7 / 10, abs=1e-12)


def test_crowds_and_areas_are_honoured():
    """A crowd swallows what falls into it, and size is the annotated area, not the box."""
    boxes = [(0, 0, [0, 0, 100, 100]), (0, 0, [200, 200, 40, 40])]
    results = [detections((0, 0.9, [10, 10, 20, 20]), (0, 0.8, [50, 50, 20, 20]), (0, 0.7, [200, 200, 40, 40]))]
    _, values = computed(ground_truth(boxes, iscrowd=[True, False], area=[9000.0, 900.0]), results)
    assert values["mAP"] == values["mAP_small"] == pytest.approx(1)
    assert np.isnan(values["mAP_medium"])
    _, values = computed(ground_truth(boxes), results)
    assert values["mAP_medium"] == pytest.approx(1)
    assert values["mAP"] == pytest.approx(51 / 101 / 3)


def test_difficult_objects_are_ignored():
    boxes = [(0, 0, [0, 0, 50, 50]), (0, 0, [200, 200, 40, 40])]
    truth = ground_truth(boxes, difficult=[True, False])
    _, values = computed(truth, [detections((0, 0.9, [0, 0, 50, 50]), (0, 0.7, [200, 200, 40, 40]))])
    assert values["mAP"] == pytest.approx(1)
    assert values["mAR_100"] == 1


@pytest.mark.parametrize("thresholds", [[0.9], [0.5, 0.6, 0.7, 0.8, 0.9], np.linspace(0.5, 0.95, 10), [0.05, 1.0]])
def test_any_overlap_threshold(thresholds):
    """Also .9, which `np.linspace(.5, .95, 10)` holds as .8999999999999999."""
    truth, results = random_case(5, grid=10.0)
    metric, values = computed(truth, results, iou_thresholds=thresholds)
    evaluation = pycocotools_evaluation(truth, metric.coco_results(), np.asarray(thresholds, dtype=float))
    precision = evaluation.eval["precision"][..., 0, -1]
    for i, threshold in enumerate(thresholds):
        expected = precision[i][precision[i] > -1].mean()
        assert values[f"mAP_{round(100 * threshold)}"] == pytest.approx(expected, abs=1e-12)
    assert values["mAP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert ("mAP_75" in values) == (len(thresholds) == 10)


def test_an_overlap_of_one_forgives_rounding():
    """As in pycocotools, which asks for 1 - 1e-10 at most."""
    truth = ground_truth([(0, 0, [0, 0, 10, 10])])
    for width, found in ((10 + 1e-11, True), (10 + 1e-8, False)):
        one = {"boxes": np.array([[0, 0, width, 10]]), "scores": np.ones(1), "labels": np.zeros(1)}
        metric = DetectionMetric(truth, iou_thresholds=[1.0])
        metric.update([0], [one], box_format="xywh")
        assert metric.compute()["mAP_100"] == pytest.approx(float(found))


def test_numbers_of_detections():
    truth, results = random_case(2)
    _, values = computed(truth, results, max_detections=(30, 3))
    assert values["mAR_3"] < values["mAR_30"]
    assert "mAR_100" not in values
    _, all_of_them = computed(truth, results)
    assert values["mAP"] == all_of_them["mAP"]  # no image has more than 20


def test_torchmetrics_default_is_not_pycocotools():
    """Its thresholds are float32: .07 becomes .07000000029, a recall that 7 of 100 objects do not reach."""
    boxes = [(0, 0, [12 * (i % 30), 12 * (i // 30), 10, 10]) for i in range(100)]
    truth = ground_truth(boxes)
    rows = [(0, 1 - i / 1000, boxes[i][2] if i < 7 or i % 2 else [300, 300, 9, 9]) for i in range(100)]
    metric, values = computed(truth, [detections(*rows)])
    reference = pycocotools_evaluation(truth, metric.coco_results()).stats[0]
    assert values["mAP"] == pytest.approx(reference, abs=1e-12)

    theirs = MeanAveragePrecision(box_format="xywh")
    row = {"boxes": torch.tensor([box for _, _, box in rows]), "labels": torch.zeros(100, dtype=torch.int64)}
    target = {"boxes": torch.tensor([box for _, _, box in boxes]), "labels": torch.zeros(100, dtype=torch.int64)}
    theirs.update([row | {"scores": torch.tensor([score for _, score, _ in rows])}], [target])
    assert abs(float(theirs.compute()["map"]) - reference) > 1e-4


def test_results_evaluate_to_the_same_digits_after_json():
    truth, results = random_case(7)
    metric, values = computed(truth, results)
    written = json.loads(json.dumps(metric.coco_results()))
    assert {entry["image_id"] for entry in written} <= set(truth["image_ids"])
    assert {entry["category_id"] for entry in written} <= set(truth["category_ids"])
    again = DetectionMetric(truth)
    for index, identity in enumerate(truth["image_ids"]):
        mine = [entry for entry in written if entry["image_id"] == identity]
        one = {
            "boxes": np.array([entry["bbox"] for entry in mine]),
            "scores": np.array([entry["score"] for entry in mine]),
            "labels": np.array([truth["category_ids"].index(entry["category_id"]) for entry in mine]),
        }
        again.update([index], [one], box_format="xywh")
    np.testing.assert_array_equal(list(again.compute().values()), list(values.values()))


def test_nothing_detected_and_nothing_annotated():
    truth, results = random_case(1)
    nothing = [detections() for _ in results]
    _, values = computed(truth, nothing)
    assert values["mAP"] == values["mAR_100"] == 0
    _, values = computed(ground_truth([], images=len(results), classes=4), results)
    assert all(np.isnan(value) for value in values.values())
    _, values = computed(ground_truth([], images=2), [detections(), detections()])
    assert all(np.isnan(value) for value in values.values())


def test_string_image_ids_order_ties_as_pycocotools_does():
    truth, results = random_case(3, grid=40.0)
    truth["image_ids"] = [f"picture {identity}" for identity in truth["image_ids"]]
    assert_equal_to_pycocotools(truth, results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "voc"}, "protocol is 'voc'; choose one of coco, voc07, voc12"),
        ({"iou_thresholds": [0.5, 1.2]}, "each above 0 and at most 1"),
        ({"iou_thresholds": []}, "give at least one"),
        ({"max_detections": [0, 100]}, "each at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DetectionMetric(ground_truth([]), **options)


def test_detections_that_are_not_finite_are_refused():
    metric = DetectionMetric(ground_truth([], images=3))
    with pytest.raises(UserError, match="detections of image 3 are not finite: the network has diverged"):
        metric.update([2], [detections((0, float("nan"), [0, 0, 1, 1]))])


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_the_dataset_lacks_are_refused(label):
    """Taken along, they would take the objects of the neighbouring image."""
    metric = DetectionMetric(ground_truth([], images=3, classes=2))
    with pytest.raises(UserError, match=f"image 2 has label {label}, but the dataset's labels are 0 to 1"):
        metric.update([1], [detections((1, 0.9, [0, 0, 1, 1]), (label, 0.9, [0, 0, 1, 1]))])
