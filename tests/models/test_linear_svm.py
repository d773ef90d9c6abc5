"""The SVMs and the ridge regressions of R-CNN's second stage."""

import numpy as np
import pytest

from models.detection.regions.box_ridge import fit_ridge, whitening
from models.detection.regions.linear_svm import NEVER, HardNegativeSVM, train_svm

RNG = np.random.default_rng


def objective(w, b, positives, negatives, c, weight, multiplier):
    """What liblinear minimises."""
    losses = weight * np.maximum(0, 1 - positives @ w - b).sum() + np.maximum(0, 1 + negatives @ w + b).sum()
    return (w @ w + (b / multiplier) ** 2) / 2 + c * losses


def clouds(seed=0, count=40, size=5):
    rng = RNG(seed)
    positives = rng.normal(1.0, 1.0, (count, size)).astype(np.float32)
    return positives, rng.normal(-0.5, 1.0, (4 * count, size)).astype(np.float32)


@pytest.mark.parametrize(("c", "weight", "multiplier"), [(1e-3, 2.0, 10.0), (0.1, 1.0, 1.0)])
def test_the_solution_is_the_minimum(c, weight, multiplier):
    positives, negatives = clouds()
    w, b = train_svm(positives, negatives, c=c, positive_weight=weight, bias_multiplier=multiplier)
    arguments = (positives, negatives, c, weight, multiplier)
    least = objective(w, b, *arguments)
    rng = RNG(1)
    for scale in (1e-1, 1e-2):
        for _ in range(100):
            other = objective(w + scale * rng.normal(size=5), b + scale * rng.normal(), *arguments)
            assert other > least * (1 - 1e-4)


def test_two_points_are_separated_in_the_middle():
    w, b = train_svm(np.array([[3.0, 0.0]]), np.array([[1.0, 0.0]]), c=1e3, positive_weight=1.0, bias_multiplier=10.0)
    np.testing.assert_allclose(w, [1, 0], atol=2e-2)
    assert b == pytest.approx(-2, abs=2e-2)


def test_mining_ends_at_the_svm_of_all_negatives():
    positives, negatives = clouds(count=60)
    options = {"c": 0.05, "positive_weight": 2.0, "bias_multiplier": 10.0}
    w, b = train_svm(positives, negatives, **options)
    svm = HardNegativeSVM(positives, **options, retrain_after=5)
    for picture in np.split(negatives, 12):
        svm.add(picture)
    svm.finish()
    assert len(np.concatenate(svm.negatives)) < len(negatives)  # easy ones were left out or forgotten
    arguments = (positives, negatives, 0.05, 2.0, 10.0)
    assert objective(svm.weight, svm.bias, *arguments) < 1.05 * objective(w, b, *arguments)


def test_all_are_kept_before_the_first_training_then_the_hard_ones():
    svm = HardNegativeSVM(np.array([[2.0]], np.float32), c=100.0, bias_multiplier=1.0, retrain_after=3)
    svm.add(np.array([[-3.0], [0.0]], np.float32))
    assert svm.trained and svm.added == 0
    assert svm.margins(np.array([[0.0]])) == pytest.approx(-1, abs=1e-2)
    assert np.concatenate(svm.negatives).tolist() == [[0.0]]  # -3 lies far beyond the margin and is forgotten
    svm.add(np.array([[-1.0], [0.5]], np.float32))  # .5 is within the margin
    assert svm.added == 1 and np.concatenate(svm.negatives).tolist() == [[0.0], [0.5]]
    before = svm.weight.copy()
    svm.add(np.array([[0.6], [0.7]], np.float32))
    assert svm.added == 3 and np.array_equal(svm.weight, before)  # not more than three
    svm.add(np.array([[0.8]], np.float32))
    assert svm.added == 0 and not np.array_equal(svm.weight, before)


def test_a_class_without_objects_is_never_found():
    svm = HardNegativeSVM(np.zeros((0, 4), np.float32))
    svm.add(np.ones((10, 4), np.float32))
    svm.finish()
    assert svm.margins(np.ones((2, 4))).tolist() == [NEVER, NEVER]


def test_a_class_without_negatives_is_trained_by_none():
    svm = HardNegativeSVM(np.ones((3, 4), np.float32))
    svm.add(np.zeros((0, 4), np.float32))
    svm.finish()
    assert not svm.trained and not svm.weight.any()


@pytest.mark.parametrize(("count", "size"), [(200, 6), (10, 30)])  # by either of the two matrices
def test_ridge_is_the_closed_form(count, size):
    rng = RNG(2)
    features, codes = rng.normal(size=(count, size)), rng.normal(0.1, 0.3, (count, 4)) @ rng.normal(size=(4, 4))
    weights, constants = fit_ridge(features, codes, 7.0)
    # The same by least squares on rows of zeros, as a penalty can be written.
    mean, whiten, colour = whitening(codes)
    x = np.concatenate([features, np.ones((count, 1))], 1)
    rows = np.concatenate([x, np.sqrt(7.0) * np.eye(size + 1)])
    wanted = np.concatenate([(codes - mean) @ whiten, np.zeros((size + 1, 4))])
    beta = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    np.testing.assert_allclose(features @ weights.T + constants, x @ beta @ colour + mean, rtol=1e-3, atol=1e-4)


def test_ridge_recovers_a_linear_map_and_a_large_penalty_leaves_the_mean():
    rng = RNG(3)
    features = rng.normal(size=(500, 5))
    codes = features @ rng.normal(size=(5, 4)) + [0.1, 0.2, 0.3, 0.4]
    weights, constants = fit_ridge(features, codes, 1e-6)
    np.testing.assert_allclose(features @ weights.T + constants, codes, atol=1e-4)
    weights, constants = fit_ridge(features, codes, 1e12)
    np.testing.assert_allclose(weights, 0, atol=1e-6)
    np.testing.assert_allclose(constants, codes.mean(0), atol=1e-5)


def test_whitened_codes_have_covariance_one():
    codes = RNG(4).normal(0, 5.0, (1000, 4)) @ RNG(5).normal(size=(4, 4))
    mean, whiten, colour = whitening(codes)
    white = (codes - mean) @ whiten
    np.testing.assert_allclose(white.T @ white / 1000, np.eye(4), atol=1e-2)
    np.testing.assert_allclose(whiten @ colour, np.eye(4), atol=1e-9)


def test_without_examples_boxes_stay():
    weights, constants = fit_ridge(np.zeros((0, 3)), np.zeros((0, 4)), 1000.0)
    assert weights.shape == (4, 3) and not weights.any() and not constants.any()


def test_one_example_gives_its_code():
    _, constants = fit_ridge(np.zeros((1, 3)), np.array([[0.1, 0.2, 0.3, 0.4]]), 1000.0)
    np.testing.assert_allclose(constants, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
