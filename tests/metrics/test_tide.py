"""TIDE's errors and gains, against literal cases and the authors' package where it is installed."""

import contextlib
import io
import json

import numpy as np
import pytest

from metrics.detection import DetectionMetric
from metrics.tide import KINDS, tide
from tests.metrics.synthetic import detections, ground_truth, random_case

A, B, FAR = [0, 0, 20, 20], [100, 0, 20, 20], [300, 300, 20, 20]
NEAR_A = [8, 0, 20, 20]  # overlaps A by 12 * 20 of 560 pixels: .43


def analyse(truth, *results, **options):
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), list(results))
    metric.compute()
    return tide(metric, **options)


def one_class(*rows, boxes=(A, B), classes=1, **marks):
    """Objects of class 0 in one image, and what was found there."""
    truth = ground_truth([(0, 0, box) for box in boxes], classes=classes, **marks)
    return analyse(truth, detections(*rows))


def gains(result):
    return {kind: error["dAP"] for kind, error in result["errors"].items() if error["dAP"]}


def counts(result):
    return {kind: error["count"] for kind, error in result["errors"].items() if error["count"]}


HALF = 51 / 101  # AP when one of two objects is found: precision 1 at recalls 0 to .5


def test_nothing_wrong():
    result = one_class((0, 0.9, A), (0, 0.8, B))
    assert result["AP"] == pytest.approx(1)
    assert gains(result) == counts(result) == {}
    assert result["special"] == {"false_positive": 0, "false_negative": 0}


def test_localisation():
    result = one_class((0, 0.9, NEAR_A), (0, 0.8, B))
    # B alone is found, second in the list: precision 1/2 up to recall 1/2.
    assert result["AP"] == pytest.approx(HALF / 2)
    assert counts(result) == {"localisation": 1}
    assert gains(result) == pytest.approx({"localisation": 1 - HALF / 2})
    assert result["special"]["false_positive"] == pytest.approx(HALF / 2)
    assert result["special"]["false_negative"] == pytest.approx(0.5 - HALF / 2)


def test_classification():
    truth = ground_truth([(0, 0, A), (0, 1, B)], classes=2)
    result = analyse(truth, detections((1, 0.9, A), (1, 0.8, B)))
    assert counts(result) == {"classification": 1}
    assert result["AP"] == pytest.approx(0.25)  # class 0: nothing; class 1: the second of two
    assert gains(result) == pytest.approx({"classification": 0.75})


def test_duplicate_and_missed():
    result = one_class((0, 0.9, A), (0, 0.8, A))
    assert counts(result) == {"duplicate": 1, "missed": 1}
    assert result["AP"] == pytest.approx(HALF)
    # The duplicate comes after the last object found, so it costs nothing; B no longer counted is worth the rest.
    assert gains(result) == pytest.approx({"missed": 1 - HALF})


def test_background_and_both():
    truth = ground_truth([(0, 0, A), (0, 1, B)], classes=2)
    result = analyse(truth, detections((0, 0.9, FAR), (0, 0.8, A), (1, 0.7, B), (1, 0.75, NEAR_A)))
    assert counts(result) == {"background": 1, "both": 1}
    assert result["AP"] == pytest.approx(0.5)
    assert gains(result) == pytest.approx({"background": 0.25, "both": 0.25})


def test_one_repair_for_one_object():
    """The better of two detections is moved to the object, the other one is dropped."""
    result = one_class((0, 0.9, NEAR_A), (0, 0.8, [7, 0, 20, 20]), boxes=(A,))
    assert result["AP"] == 0
    assert counts(result) == {"localisation": 2}
    assert gains(result) == pytest.approx({"localisation": 1})


def test_localisation_beside_a_found_object_is_dropped():
    result = one_class((0, 0.9, NEAR_A), (0, 0.8, A), boxes=(A,))
    assert counts(result) == {"localisation": 1}
    assert result["AP"] == pytest.approx(0.5)
    assert gains(result) == pytest.approx({"localisation": 0.5})


def test_crowds_and_difficult_objects_do_not_count():
    result = one_class((0, 0.9, A), (0, 0.8, B), (0, 0.7, B), iscrowd=[False, True])
    assert result["AP"] == pytest.approx(1)
    assert counts(result) == {}
    result = one_class((0, 0.9, A), difficult=[False, True])
    assert counts(result) == {}


def test_nothing_to_find_and_nothing_found():
    json.dumps(one_class((0, 0.9, A), boxes=()))
    assert one_class((0, 0.9, A), boxes=())["AP"] is None
    result = one_class()
    assert counts(result) == {"missed": 2}
    assert result["AP"] == 0


def test_thresholds():
    truth = ground_truth([(0, 0, A)])
    found = detections((0, 0.9, NEAR_A))
    assert analyse(truth, found, iou_threshold=0.4)["AP"] == pytest.approx(1)
    assert counts(analyse(truth, found, background_threshold=0.45)) == {"background": 1, "missed": 1}


@pytest.mark.parametrize("seed", range(4))
def test_base_is_the_metric(seed):
    truth, results = random_case(seed)
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    expected = metric.compute()["mAP_50"]
    assert tide(metric)["AP"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_against_the_authors(seed, monkeypatch):
    tidecv = pytest.importorskip("tidecv")
    # The same recalls to the last bit: pycocotools' linspace, which is ours, has .07 a hair above 7 / 100.
    monkeypatch.setattr("metrics.coco.RECALLS", np.arange(101) / 100)
    truth, results = random_case(seed, images=20, objects=5, found=12)
    truth["iscrowd"][:] = False  # theirs also finds errors in what falls to crowds
    truth["labels"] = (truth["labels"] + np.arange(len(truth["labels"]))) % 4  # no class is without objects
    scores = iter(np.random.default_rng(seed).permutation(np.linspace(0.05, 0.95, 4096)))
    for result in results:  # distinct scores: equal ones have no order
        result["scores"] = np.array([next(scores) for _ in result["scores"]])
    ours = analyse(truth, *results)
    objects, found = tidecv.Data("objects"), tidecv.Data("found")
    for i, label in enumerate(truth["labels"]):
        objects.add_ground_truth(int(truth["image_index"][i]), int(label), truth["boxes"][i].tolist())
    for image, result in enumerate(results):
        objects.images[image], found.images[image]  # theirs evaluates only images it has heard of
        for box, score, label in zip(result["boxes"].astype(float), result["scores"], result["labels"], strict=True):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            found.add_detection(image, int(label), float(score), [float(v) for v in xywh])
    with contextlib.redirect_stdout(io.StringIO()):
        run = tidecv.TIDE().evaluate(objects, found, mode=tidecv.TIDE.BOX)
    names = dict(zip(("Loc", "Cls", "Dupe", "Bkg", "Both", "Miss"), KINDS, strict=True))
    assert ours["AP"] == pytest.approx(run.ap / 100, abs=1e-9)
    assert sum(counts(ours).values()) > 30
    for error, count in run.count_errors().items():
        assert ours["errors"][names[error.short_name]]["count"] == count, error.short_name
    for error, gain in run.fix_main_errors().items():
        assert ours["errors"][names[error.short_name]]["dAP"] == pytest.approx(gain / 100, abs=1e-9), error.short_name
    special = {error.short_name: gain / 100 for error, gain in run.fix_special_errors().items()}
    assert ours["special"]["false_positive"] == pytest.approx(special["FalsePos"], abs=1e-9)
    assert ours["special"]["false_negative"] == pytest.approx(special["FalseNeg"], abs=1e-9)
