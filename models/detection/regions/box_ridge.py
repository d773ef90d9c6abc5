"""Bounding-box regression of R-CNN (Girshick et al., appendix C; `rcnn_train_bbox_regressor.m`)."""

import numpy as np

EPSILON = 1e-3  # added to the variances before their square root is taken, as the authors do


def fit_ridge(features: np.ndarray, codes: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Regress the codes of boxes from features.

    The codes are whitened (mean 0, covariance 1), which puts the four of them on one scale under one penalty; a
    constant feature is regularised with the others. The result maps features to the codes themselves.

    Args:
        features: (n, D).
        codes: (n, 4), wanted.
        penalty: lambda, 1000 in the paper.

    Returns:
        Weights (4, D) and constants (4,) float32; zeros if there is nothing to learn from.
    """
    count, size = features.shape
    if not count:
        return np.zeros((4, size), np.float32), np.zeros(4, np.float32)
    x = np.concatenate([features, np.ones((count, 1))], 1).astype(np.float64)
    mean, whiten, colour = whitening(codes.astype(np.float64))
    y = (codes - mean) @ whiten
    if count >= size:
        beta = np.linalg.solve(x.T @ x + penalty * np.eye(size + 1), x.T @ y)
    else:  # the same by the matrix of the examples, which is the smaller one
        beta = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(count), y)
    beta = beta @ colour
    return beta[:-1].T.astype(np.float32), (beta[-1] + mean).astype(np.float32)


def whitening(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean (4,) of codes (n, 4), the matrix (4, 4) that gives them covariance 1, and its inverse."""
    mean = codes.mean(0)
    centred = codes - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(codes))
    deviations = np.sqrt(np.maximum(variances, 0) + EPSILON)
    return mean, (axes / deviations) @ axes.T, (axes * deviations) @ axes.T
