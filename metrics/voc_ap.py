"""PASCAL VOC's average precision, as the development kit computes it."""

from typing import Any

import numpy as np

from metrics.matching import Objects, match_class, precision_recall


def voc_ap(
    ground_truth: dict[str, Any],
    detections: dict[int, dict[str, np.ndarray]],
    eleven_points: bool,
    iou_threshold: float = 0.5,
) -> dict[str, float]:
    """Average precision per class and its mean over the classes that have objects.

    Args:
        ground_truth: as `DetectionMetric` takes it.
        detections: see `coco_ap`.
        eleven_points: VOC 2007's mean of eleven precisions; otherwise the area under the curve (2010 and later).
        iou_threshold: overlap from which a detection is right.

    Returns:
        `mAP`, `mAP_50` (the same number, where the threshold is .5) and `AP/<class>`; NaN for classes without objects.
    """
    objects = Objects(ground_truth)
    values = {}
    for label, name in enumerate(ground_truth["class_names"]):
        _, right, to_find = match_class(objects, detections, label, iou_threshold)
        precision, recall = precision_recall(right, to_find)
        values[f"AP/{name}"] = average_precision(precision, recall, eleven_points) if to_find else float("nan")
    known = [value for value in values.values() if not np.isnan(value)]
    mean = float(np.mean(known)) if known else float("nan")
    return {"mAP": mean, f"mAP_{round(100 * iou_threshold)}": mean, **values}


def average_precision(precision: np.ndarray, recall: np.ndarray, eleven_points: bool) -> float:
    """One class; `recall` ascending."""
    if eleven_points:  # mean over recalls 0, .1, ..., 1 of the best precision at that recall or beyond
        # k / 10 and not .1 * k: the float closest to .3, which a recall of 3 of 10 equals
        best = [precision[recall >= k / 10].max(initial=0.0) for k in range(11)]
        return float(np.mean(best))
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the envelope from the right
    return float(np.sum(np.diff(recall) * precision[1:]))
