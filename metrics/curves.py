"""What stands behind a mean average precision: precision-recall curves, the best threshold, the confusion matrix."""

from typing import Any

import numpy as np

from metrics.detection import DetectionMetric
from metrics.matching import Objects, match_class, overlaps, precision_recall

POINTS = 101


def detection_curves(metric: DetectionMetric, iou_threshold: float = 0.5) -> dict[str, Any] | None:
    """Curves and confusions of the detections that a metric has gathered.

    Args:
        metric: after `compute`.
        iou_threshold: overlap from which a detection is right.

    Returns:
        On rank 0 a dictionary of JSON types, None elsewhere:
        `classes`: per class name `precision` at the recalls 0, .01, ..., 1 (the envelope), `thresholds` and `f1` of
        the F1 curve, `best_f1` and `best_threshold`; `best_threshold` and `best_f1` over all classes;
        `confusion_matrix` (K + 1, K + 1) at the overall best threshold: rows are true classes, columns predicted ones,
        the last row are detections of nothing, the last column objects that were missed; `labels` of its rows.
    """
    if metric.gathered is None:
        return None
    objects = Objects(metric.ground_truth)
    names = metric.ground_truth["class_names"]
    matches = [match_class(objects, metric.gathered, label, iou_threshold) for label in range(len(names))]
    classes = {}
    for name, (scores, right, to_find) in zip(names, matches, strict=True):
        precision, recall = precision_recall(right, to_find)
        classes[name] = {"precision": _envelope(precision, recall), "objects": to_find} | _best_f1(
            scores, right, to_find
        )
    overall = _best_f1(
        np.concatenate([scores for scores, _, _ in matches]),
        np.concatenate([right for _, right, _ in matches]),
        sum(to_find for _, _, to_find in matches),
    )
    threshold = overall["best_threshold"]
    return {
        "iou_threshold": iou_threshold,
        "recalls": np.linspace(0, 1, POINTS).tolist(),
        "classes": classes,
        "best_threshold": threshold,
        "best_f1": overall["best_f1"],
        "labels": [*names, "background"],
        "confusion_matrix": confusion_matrix(objects, metric.gathered, len(names), threshold, iou_threshold).tolist(),
    }


def confusion_matrix(
    objects: Objects,
    detections: dict[int, dict[str, np.ndarray]],
    num_classes: int,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """(K + 1, K + 1) int64 counts, true class by predicted class, background last.

    The pairs of an image are taken by descending overlap, whatever their classes, each object and each detection once.
    Difficult objects and crowds are left out, and so are detections that overlap one of them.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image, found in detections.items():
        these = objects.of(image)
        confident = found["scores"] >= score_threshold
        boxes, predicted = found["boxes"][confident], found["labels"][confident]
        table = overlaps(boxes, objects.boxes[these])
        ignored = objects.ignored[these]
        free_detections, free_objects = np.ones(len(boxes), bool), ~ignored
        for flat in np.argsort(-table, axis=None, kind="stable"):
            detection, thing = np.unravel_index(flat, table.shape)
            if table[detection, thing] < iou_threshold:
                break
            if not free_detections[detection]:
                continue
            if ignored[thing]:
                free_detections[detection] = False
            elif free_objects[thing]:
                free_detections[detection] = free_objects[thing] = False
                matrix[objects.labels[these[thing]], predicted[detection]] += 1
        np.add.at(matrix, (num_classes, predicted[free_detections]), 1)
        np.add.at(matrix, (objects.labels[these[free_objects]], num_classes), 1)
    return matrix


def _envelope(precision: np.ndarray, recall: np.ndarray) -> list[float]:
    """The best precision at each of the recalls 0, .01, ..., 1 or beyond."""
    if not len(precision) or np.isnan(recall).any():
        return [0.0] * POINTS
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(recall, np.linspace(0, 1, POINTS), side="left")].tolist()


def _best_f1(scores: np.ndarray, right: np.ndarray, to_find: int) -> dict[str, Any]:
    """F1 = 2 TP / (detections + objects), by the score from which detections are kept."""
    if not len(scores) or not to_find:
        return {"thresholds": [], "f1": [], "best_f1": 0.0, "best_threshold": 1.0}
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(right[order])
    f1 = 2 * true / (np.arange(1, len(scores) + 1) + to_find)
    last = np.append(scores[1:] < scores[:-1], True)  # a threshold keeps all detections of equal score
    scores, f1 = scores[last], f1[last]
    best = int(f1.argmax())
    thin = np.unique(np.linspace(0, len(f1) - 1, min(len(f1), POINTS)).round().astype(int))
    return {
        "thresholds": scores[thin].astype(float).tolist(),
        "f1": f1[thin].tolist(),
        "best_f1": float(f1[best]),
        "best_threshold": float(scores[best]),
    }
