"""COCO's average precision and recall, equal to pycocotools (Lin et al., `COCOeval.accumulate`)."""

from typing import NamedTuple

import numpy as np

from metrics.matching import Found, Objects, assign, overlapping_pairs, ranks

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class CocoEvaluation(NamedTuple):
    """NaN where a class has no object to find (pycocotools says -1).

    Attributes:
        precision: (T, 101, K, A) at COCO's recalls, of at most `max_detections[-1]` detections per image and class.
        recall: (T, K, A, M), by number of detections.
    """

    precision: np.ndarray
    recall: np.ndarray


class Assigned(NamedTuple):
    """Detections by group and descending score, cut to the most allowed, and what became of them.

    Attributes:
        found: D detections, those of an image and class together, the best first.
        correct: (D, T, A) bool: finds an object.
        wrong: (D, T, A) bool: finds none. A detection that is neither does not count.
        objects_to_find: (K, A) int64.
    """

    found: Found
    correct: np.ndarray
    wrong: np.ndarray
    objects_to_find: np.ndarray


def assign_per_class(
    objects: Objects,
    found: Found,
    num_classes: int,
    thresholds: np.ndarray,
    max_detections: int,
    areas: list[tuple[float, float]],
) -> Assigned:
    """Sort and cut the detections, and assign each to an object of its image and class.

    Crowds, difficult objects and objects outside an area range are ignored: they need not be found, and a detection
    that finds one does not count. Nor does a detection that finds nothing and lies outside the range itself.
    """
    groups = found.image * num_classes + found.label
    order = np.lexsort((-found.scores, groups))
    order = order[ranks(groups[order]) < max_detections]
    found, groups = found[order], groups[order]

    low, high = np.array(areas, dtype=np.float64).T
    outside = (objects.area[:, None] < low) | (objects.area[:, None] > high)
    ignored = outside | (objects.iscrowd | objects.difficult)[:, None]  # (M, A)
    objects_to_find = np.zeros((num_classes, len(areas)), dtype=np.int64)
    np.add.at(objects_to_find, objects.label, ~ignored)

    object_groups = objects.image * num_classes + objects.label
    least = float(min(thresholds.min(), 1 - 1e-10))
    pairs = overlapping_pairs(found, groups, objects, object_groups, least)
    rows, winners = assign(pairs, groups, thresholds, ignored, objects.iscrowd)

    area = found.boxes[:, 2] * found.boxes[:, 3]
    inside = ((area[:, None] >= low) & (area[:, None] <= high))[:, None]  # (D, 1, A)
    wrong = np.repeat(inside, len(thresholds), axis=1)
    correct = np.zeros_like(wrong)
    matched = winners >= 0
    correct[rows] = matched & ~ignored[winners, np.arange(len(areas))]
    wrong[rows] &= ~matched
    return Assigned(found, correct, wrong, objects_to_find)


def coco_evaluation(
    objects: Objects,
    found: Found,
    num_classes: int,
    thresholds: np.ndarray = IOU_THRESHOLDS,
    max_detections: tuple[int, ...] = (1, 10, 100),
) -> CocoEvaluation:
    """Precision and recall over all thresholds, classes, `AREAS` and numbers of detections.

    Args:
        objects: of the images evaluated. Images are numbered in pycocotools' order, by ascending id: it decides
            between detections of equal score.
        found: the detections in these images, in any order; among equal scores of an image the first comes first.
        num_classes: K.
        thresholds: (T,) overlaps.
        max_detections: ascending.
    """
    found, correct, wrong, objects_to_find = assign_per_class(
        objects, found, num_classes, thresholds, max_detections[-1], list(AREAS.values())
    )
    shape = (len(thresholds), num_classes, len(AREAS))
    precision = np.full((len(thresholds), len(RECALLS), *shape[1:]), np.nan)
    recall = np.full((*shape, len(max_detections)), np.nan)
    place = ranks(found.image * num_classes + found.label)

    by_class = np.lexsort((-found.scores, found.label))
    bounds = np.searchsorted(found.label[by_class], np.arange(num_classes + 1))
    for label in range(num_classes):
        rows = by_class[bounds[label] : bounds[label + 1]]
        # (T, A, n) and contiguous along the detections
        right = np.ascontiguousarray(correct[rows].transpose(1, 2, 0))
        false = np.ascontiguousarray(wrong[rows].transpose(1, 2, 0))
        few = np.stack([place[rows] < most for most in max_detections])  # (M, n)
        for area in np.flatnonzero(objects_to_find[label]):
            total = objects_to_find[label, area]
            recall[:, label, area] = np.count_nonzero(right[:, area, None] & few, axis=-1) / total
            for t in range(len(thresholds)):
                precision[t, :, label, area] = precision_at_recalls(right[t, area], false[t, area], total)
    return CocoEvaluation(precision, recall)


def precision_at_recalls(correct: np.ndarray, wrong: np.ndarray, objects_to_find: int) -> np.ndarray:
    """The best precision at each of COCO's 101 recalls or beyond; 0 at recalls that are not reached.

    Args:
        correct: (n,) bool, detections by descending score.
        wrong: (n,) bool.
        objects_to_find: positive.

    Returns:
        (101,) float64.
    """
    true, false = np.cumsum(correct).astype(np.float64), np.cumsum(wrong).astype(np.float64)
    precision = true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(true / objects_to_find, RECALLS, side="left")
    return np.append(precision, 0.0)[reached]


def mean_of_defined(values: np.ndarray) -> float:
    """The mean without the NaNs; NaN if there is nothing else."""
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if len(values) else float("nan")
