"""Average precision of PASCAL VOC: the 11-point one of 2007 and the all-point one of 2010 and later."""

from dataclasses import replace

import numpy as np

from metrics.matching import Found, Objects, overlapping_pairs

# k * 0.1 in float64, as Python implementations of VOC have it (the fourth is 0.30000000000000004).
ELEVEN_POINTS = np.arange(11) * 0.1


def voc_average_precision(
    objects: Objects, found: Found, num_classes: int, threshold: float, eleven_points: bool
) -> np.ndarray:
    """Average precision per class by the rules of the VOC development kit (`VOCevaldet`).

    Each detection is compared with the object of its image and class that it overlaps most (the first among equals),
    taken or not: it is correct if they overlap by the threshold or more and no better detection had that object;
    a second detection of an object is wrong even if it overlaps another one. Detections of difficult objects do not
    count, and these need not be found; crowds, which VOC does not have, are taken for difficult objects. All detections
    count, however many.

    Args:
        objects: boxes are half-open: x from `xmin - 1` to `xmax`, so that overlaps are the kit's, which adds 1 to
            widths and heights.
        found: likewise. Equal scores keep their order: by image, then as given.
        num_classes: K.
        threshold: overlap.
        eleven_points: mean of the best precisions at recalls of 0, .1, ..., 1 (VOC 2007) or the area under the curve of
            best precisions.

    Returns:
        (K,) float64, NaN for classes without an object to find.
    """
    ignored = objects.difficult | objects.iscrowd
    objects = replace(objects, iscrowd=np.zeros_like(ignored))
    found = found[np.lexsort((found.image, -found.scores, found.label))]
    groups, object_groups = (boxes.image * num_classes + boxes.label for boxes in (found, objects))
    pairs = overlapping_pairs(found, groups, objects, object_groups, threshold)
    # The best object of each detection: pairs by detection, then descending overlap, then order of the objects.
    best = np.lexsort((pairs.object, -pairs.iou, pairs.detection))
    detection, where = np.unique(pairs.detection[best], return_index=True)
    target = pairs.object[best][where]
    counts = ~ignored[target]

    correct = np.zeros(len(found), dtype=bool)
    wrong = np.ones(len(found), dtype=bool)
    wrong[detection[~counts]] = False
    _, earliest = np.unique(target[counts], return_index=True)  # detections of a class are by descending score
    correct[detection[counts][earliest]] = True
    wrong &= ~correct

    total = np.bincount(objects.label[~ignored], minlength=num_classes)
    bounds = np.searchsorted(found.label, np.arange(num_classes + 1))
    average = eleven_point_precision if eleven_points else area_under_curve
    result = np.full(num_classes, np.nan)
    for label in np.flatnonzero(total):
        rows = slice(bounds[label], bounds[label + 1])
        true, false = np.cumsum(correct[rows]), np.cumsum(wrong[rows])
        result[label] = average(true / total[label], true / np.maximum(true + false, 1))
    return result


def eleven_point_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2007's mean of the best precision at recalls of at least 0, .1, ..., 1.

    Args:
        recall: (n,) ascending.
        precision: (n,).
    """
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(np.mean(best[np.searchsorted(recall, ELEVEN_POINTS, side="left")]))


def area_under_curve(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the best precision at each recall or beyond (VOC 2010 and later)."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))
