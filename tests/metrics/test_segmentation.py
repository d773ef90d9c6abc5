"""mIoU against the worked toy, an independent computation, torchmetrics, and itself on several processes."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from metrics.exact import IncompleteError
from metrics.segmentation import SegmentationMetric, boundary_counts, confusion_matrix
from tests.helpers import finish, start


def names(classes: int) -> list[str]:
    return [f"c{k}" for k in range(classes)]


def computed(predictions, truths, classes: int, **options) -> dict[str, float]:
    metric = SegmentationMetric(names(classes), len(truths), **options)
    for i, (p, t) in enumerate(zip(predictions, truths, strict=True)):
        metric.update(i, p, t)
    return metric.compute()


def toy():
    t, p = np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8), np.uint8)
    t[0, :2], p[0, :1] = 1, 1
    t[1, :, :6], p[1, :, :5] = 2, 2
    t[2, 0, 0], p[2, :2, :2] = 1, 1
    p[3, 0, 0] = 2
    return p, t


def test_worked_toy():
    values = computed(*toy(), 4)
    assert values["IoU/c0"] == pytest.approx(0.903382, abs=1e-6)
    assert values["IoU/c1"] == 0.45
    assert values["IoU/c2"] == pytest.approx(0.816327, abs=1e-6)
    assert math.isnan(values["IoU/c3"])
    assert values["mIoU"] == pytest.approx(0.723236, abs=1e-6)


def test_a_class_that_is_only_predicted_counts_zero_and_one_without_labels_has_no_accuracy():
    t, p = np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8)
    p[0, 0, 0] = 1
    values = computed(p, t, 3)
    assert values["IoU/c0"] == 0.75
    assert values["IoU/c1"] == 0
    assert values["mIoU"] == 0.375
    assert values["mean_accuracy"] == values["pixel_accuracy"] == 0.75
    assert values["fwIoU"] == 0.75


def independent(predictions, truths, classes: int) -> dict[str, float | None]:
    """Sets of pixels and exact fractions."""
    pixels = [
        (p, t) for ps, ts in zip(predictions, truths, strict=True)
        for p, t in zip(ps.flatten().tolist(), ts.flatten().tolist(), strict=True) if t != 255
    ]  # fmt: skip
    ious, accuracies, frequent = [], [], Fraction(0)
    for k in range(classes):
        hits = sum(p == t == k for p, t in pixels)
        union = sum(k in (p, t) for p, t in pixels)
        occurs = sum(t == k for _, t in pixels)
        if union:
            ious.append(Fraction(hits, union))
        if occurs:
            accuracies.append(Fraction(hits, occurs))
            frequent += occurs * Fraction(hits, union)
    return {
        "mIoU": float(sum(ious) / len(ious)) if ious else None,
        "mean_accuracy": float(sum(accuracies) / len(accuracies)) if accuracies else None,
        "pixel_accuracy": sum(p == t for p, t in pixels) / len(pixels) if pixels else None,
        "fwIoU": float(frequent / len(pixels)) if pixels else None,
    }


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_equals_an_independent_computation(classes, pictures, seed):
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 6, (pictures, 2))
    truths = [rng.choice([*range(classes), 255], tuple(shape)).astype(np.uint8) for shape in shapes]
    predictions = [rng.integers(classes, size=tuple(shape)).astype(np.uint8) for shape in shapes]
    values = computed(predictions, truths, classes)
    for name, expected in independent(predictions, truths, classes).items():
        if expected is None:
            assert math.isnan(values[name])
        else:
            assert values[name] == pytest.approx(expected, abs=1e-12)


def test_equals_torchmetrics():
    rng = np.random.default_rng(3)
    truths = rng.choice([0, 1, 2, 3, 255], (5, 20, 30)).astype(np.uint8)
    predictions = np.where(rng.random((5, 20, 30)) < 0.6, truths % 5 % 4, rng.integers(4, size=(5, 20, 30)))
    peer = MulticlassJaccardIndex(4, ignore_index=255)
    expected = peer(torch.tensor(predictions), torch.tensor(truths.astype(np.int64))).item()
    assert computed(predictions, truths, 4)["mIoU"] == pytest.approx(expected, abs=1e-6)


def test_a_mean_over_pictures_would_be_another_number():
    p, t = toy()
    pictures = [computed(p[i : i + 1], t[i : i + 1], 4)["mIoU"] for i in range(4)]
    assert abs(np.mean(pictures) - computed(p, t, 4)["mIoU"]) > 0.05


def test_counts_beyond_float32():
    """2^24 + 1 pixels of a class: float32 would lose the last one."""
    metric = SegmentationMetric(names(2), 2)
    metric.update(0, np.zeros((4096, 4096), np.uint8), np.zeros((4096, 4096), np.uint8))
    metric.update(1, np.array([[1]]), np.array([[0]]))
    metric.compute()
    assert metric.confusion.tolist() == [[2**24, 1], [0, 0]]


def test_missing_pictures_are_an_error():
    metric = SegmentationMetric(names(2), 3)
    metric.update(1, np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    with pytest.raises(IncompleteError, match="saw 1 of 3"):
        metric.compute()


def test_boundary_regions():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    counts = boundary_counts(truth, truth, 2)
    # Distance round(.02 * 28.3) = 1: the square's outermost ring, and around it with the picture's own edge.
    assert counts[1].tolist() == [36, 36]
    assert counts[0].tolist() == [76 + 44, 76 + 44]
    shifted = np.roll(truth, 1, 1)
    a = {(y, x) for y in range(5, 15) for x in range(5, 15) if y in (5, 14) or x in (5, 14)}
    b = {(y, x + 1) for y, x in a}
    assert boundary_counts(shifted, truth, 2)[1].tolist() == [len(a & b), len(a | b)]
    values = computed([shifted], [truth], 2, boundary=True)
    assert values["boundary_mIoU"] < values["mIoU"] < 1


SCRIPT = """
import json, os, sys
import numpy as np
import torch.distributed as dist
from metrics.segmentation import SegmentationMetric

rank, world = int(sys.argv[1]), int(sys.argv[2])
if world > 1:
    dist.init_process_group("gloo", init_method="tcp://" + sys.argv[3], rank=rank, world_size=world)
metric = SegmentationMetric(["a", "b", "c"], 7, boundary=True)
for index in [*range(rank, 7, world), 0]:  # picture 0 comes twice
    rng = np.random.default_rng(index)
    truth = rng.choice([0, 1, 2, 255], (9 + index, 11)).astype(np.uint8)
    metric.update(index, rng.integers(3, size=truth.shape).astype(np.uint8), truth)
print(json.dumps({k: v.hex() for k, v in metric.compute().items()}))
"""


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_bits_on_several_processes(world, free_address):
    alone = finish(start("-c", SCRIPT, "0", "1"))
    processes = [start("-c", SCRIPT, str(rank), str(world), free_address) for rank in range(world)]
    for status, output in [finish(process) for process in processes]:
        assert status == 0, output
        assert json.loads(output.splitlines()[-1]) == json.loads(alone[1].splitlines()[-1])


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([[0, 1]], [[0, 2]], "the truth holds the label 2; there are 2 classes"),
        ([[0, 1]], [[0, 254]], "the truth holds the label 254; there are 2 classes"),
        ([[0, 2]], [[0, 1]], "the prediction holds the label 2; there are 2 classes"),
        ([[0, 255]], [[0, 255]], "the prediction holds the label 255; there are 2 classes"),
        ([[0, 1]], [[0], [1]], r"the prediction has the shape \(1, 2\), the truth \(2, 1\)"),
    ],
)
def test_labels_that_are_no_class_are_refused(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(prediction, np.uint8), np.array(truth, np.uint8), 2)


def test_the_largest_number_of_classes():
    """255 classes: the last is 254, and 255 still counts nowhere."""
    labels = np.array([[0, 254, 255, 254]], np.uint8)
    counts = confusion_matrix(np.array([[0, 254, 3, 1]], np.uint8), labels, 255)
    assert counts.sum() == 3 and counts[0, 0] == counts[254, 254] == counts[254, 1] == 1
