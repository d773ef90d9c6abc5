"""Behind the average: confusion matrix, precision-recall curves and the best score threshold."""

from typing import Any

import numpy as np

from metrics.coco import AREAS, RECALLS, assign_per_class, precision_at_recalls
from metrics.detection import DetectionMetric
from metrics.matching import Found, Objects, assign, overlapping_pairs

SCORES = np.linspace(0, 1, 101)


def detection_curves(
    metric: DetectionMetric, *, iou_threshold: float = 0.5, score_threshold: float | None = None
) -> dict[str, Any] | None:
    """Curves of the detections that a metric has gathered; call it after `compute`.

    Detections are assigned to objects as COCO does, at one overlap; crowds and difficult objects neither count as
    missed nor make a detection wrong. Undefined numbers are None, so that the result can be written as JSON.

    Args:
        metric: after `compute`.
        iou_threshold: overlap from which a detection finds an object.
        score_threshold: of the confusion matrix; None takes the best one over all classes.

    Returns:
        None on all ranks but 0, where it is a dictionary:

        - `iou_threshold`, `class_names`;
        - `precision_recall`: `recall` (101), `precision` by class name (101 each: the best precision at that recall or
          beyond, 0 where it is not reached; None for a class without objects), and `mean`, that over the classes;
        - `f1`: `score` (101 thresholds), `overall` (101, over the detections of all classes) and `classes` by name;
        - `best_f1`: `overall` and `classes` by name, each `score_threshold`, `f1`, `precision`, `recall`: the threshold
          with the highest F1 (the highest among equals), exactly. A detection counts if its score is not below it;
        - `confusion`: `score_threshold` and `matrix`, (K + 1) rows for the truth by (K + 1) columns for the
          detections, the last of each the background; see `confusion_matrix`.
    """
    if metric.gathered is None:
        return None
    names = metric.ground_truth["class_names"]
    objects, found = metric.flat(metric.gathered)
    thresholds = np.array([iou_threshold])
    most = metric.max_detections[-1]
    assigned = assign_per_class(objects, found, len(names), thresholds, most, [AREAS["all"]])

    order = np.argsort(-assigned.found.scores, kind="stable")
    label, score = assigned.found.label[order], assigned.found.scores[order]
    correct, wrong = assigned.correct[order, 0, 0], assigned.wrong[order, 0, 0]
    totals = assigned.objects_to_find[:, 0]

    precision, curves, best = {}, {}, {}
    for k, name in enumerate(names):
        of_class = label == k
        one = (score[of_class], correct[of_class], wrong[of_class], int(totals[k]))
        precision[name] = precision_at_recalls(*one[1:]) if totals[k] else None
        curves[name], best[name] = f1_by_score(*one)
    overall_curve, overall_best = f1_by_score(score, correct, wrong, int(totals.sum()))
    defined = [values for values in precision.values() if values is not None]
    if score_threshold is None:
        score_threshold = overall_best["score_threshold"] or 0.0
    matrix = confusion_matrix(objects, found, len(names), iou_threshold, score_threshold)
    return {
        "iou_threshold": iou_threshold,
        "class_names": list(names),
        "precision_recall": {
            "recall": RECALLS.tolist(),
            "precision": {name: None if values is None else values.tolist() for name, values in precision.items()},
            "mean": np.mean(defined, axis=0).tolist() if defined else None,
        },
        "f1": {"score": SCORES.tolist(), "overall": overall_curve, "classes": curves},
        "best_f1": {"overall": overall_best, "classes": best},
        "confusion": {"score_threshold": score_threshold, "matrix": matrix.tolist()},
    }


def f1_by_score(
    scores: np.ndarray, correct: np.ndarray, wrong: np.ndarray, objects_to_find: int
) -> tuple[list[float] | None, dict[str, float | None]]:
    """F1 = 2 TP / (2 TP + FP + FN), of the detections that score no less than a threshold.

    Args:
        scores: (n,) descending.
        correct: (n,) bool.
        wrong: (n,) bool.
        objects_to_find: how many there are.

    Returns:
        F1 at each of `SCORES`, and the best threshold of all with its F1, precision and recall.
    """
    if not objects_to_find:
        return None, dict.fromkeys(("score_threshold", "f1", "precision", "recall"))
    true, false = (np.concatenate([[0], np.cumsum(marks)]) for marks in (correct, wrong))  # by number of detections
    f1 = 2 * true / (true + false + objects_to_find)
    counts = np.searchsorted(-scores, -SCORES, side="right")
    if not len(scores):
        return f1[counts].tolist(), {"score_threshold": None, "f1": 0.0, "precision": None, "recall": 0.0}
    # Detections of equal score come and go together: only the last of them ends a choice.
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) + 1
    best = ends[np.argmax(f1[ends])]
    found = true[best] + false[best]
    return f1[counts].tolist(), {
        "score_threshold": float(scores[best - 1]),
        "f1": float(f1[best]),
        "precision": float(true[best] / found) if found else None,
        "recall": float(true[best] / objects_to_find),
    }


def confusion_matrix(
    objects: Objects, found: Found, num_classes: int, iou_threshold: float, score_threshold: float
) -> np.ndarray:
    """What each object was taken for.

    Classes play no part in the assignment: in descending order of score, each detection takes the free object of its
    image that it overlaps most, if by `iou_threshold` or more. A detection that finds nothing is one of background,
    unless it overlaps a crowd or difficult object of its own class, when it does not count; an object that nothing
    finds is taken for background.

    Returns:
        (K + 1, K + 1) int64 counts, rows the truth, columns the detections, the last of each the background.
    """
    found = found[found.scores >= score_threshold]
    found = found[np.lexsort((-found.scores, found.image))]
    ignored = objects.iscrowd | objects.difficult
    pairs = overlapping_pairs(found, found.image, objects, objects.image, iou_threshold)
    same_class = found.label[pairs.detection] == objects.label[pairs.object]
    pairs = pairs[same_class | ~ignored[pairs.object]]
    rows, winners = assign(pairs, found.image, np.array([iou_threshold]), ignored[:, None], objects.iscrowd)

    taken = np.full(len(found), -1)
    taken[rows] = winners[:, 0, 0]
    truth = np.where(taken >= 0, np.append(objects.label, num_classes)[taken], num_classes)
    counts = (taken < 0) | ~np.append(ignored, False)[taken]
    missed = ~ignored
    missed[taken[taken >= 0]] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(matrix, (truth[counts], found.label[counts]), 1)
    np.add.at(matrix, (objects.label[missed], num_classes), 1)
    return matrix
