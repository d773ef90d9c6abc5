"""What kinds of errors cost a detector how much precision (Bolya et al.: "TIDE: A General Toolbox for Identifying
Object Detection Errors", ECCV 2020).
"""

from typing import Any, NamedTuple

import numpy as np

from metrics.coco import mean_of_defined, precision_at_recalls
from metrics.detection import DetectionMetric
from metrics.matching import Found, Objects, Pairs, assign, overlapping_pairs, ranks

# What may be wrong with a detection, in the order in which it is decided; MISSED is what may be wrong with an object.
LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH, MISSED = KINDS = (
    "localisation", "classification", "duplicate", "background", "both", "missed",
)  # fmt: skip


class Errors(NamedTuple):
    """The false detections and the objects that were not found, after one assignment.

    Attributes:
        found: D detections that count, those of an image and class together, the best first.
        correct: (D,) bool.
        kind: (D,) str, one of `KINDS`; empty where correct.
        goal: (D,) int64: the object that a detection of kind LOCALISATION or CLASSIFICATION would find once repaired
            (its score is the best of all that could), else -1.
        objects: M objects that are to be found.
        detected: (M,) bool.
        missed: (M,) bool: not found, and out of reach of any repair.
    """

    found: Found
    correct: np.ndarray
    kind: np.ndarray
    goal: np.ndarray
    objects: Objects
    detected: np.ndarray
    missed: np.ndarray


def tide(
    metric: DetectionMetric, *, iou_threshold: float = 0.5, background_threshold: float = 0.1
) -> dict[str, Any] | None:
    """Errors of the detections that a metric has gathered, each kind with the precision that its repair would gain.

    Every false detection has one kind of error, the first of these that holds:

    - `localisation`: it overlaps an object of its class, but by less than `iou_threshold`;
    - `classification`: it overlaps an object of another class by that or more;
    - `duplicate`: it overlaps an object of its class by that or more, which a better detection had found;
    - `background`: it overlaps no object by `background_threshold`;
    - `both`: class and place are wrong.

    An object is `missed` that neither a detection finds nor a repair of the first two kinds would. To repair is: to
    put place or class right (the best detection of each object only, the others are dropped); to drop; and, for
    `missed`, no longer to count the object. As in the authors' code, a class that has no object left counts as 0 while
    it has detections, and a loss by a repair (possible by a hair: precision is read at 101 recalls) counts as 0.

    Detections are assigned as COCO does; those that fall to crowds or difficult objects do not count.

    Args:
        metric: after `compute`.
        iou_threshold: overlap from which a detection finds an object.
        background_threshold: overlap below which it has nothing to do with it.

    Returns:
        None on all ranks but 0, where it is a dictionary: `iou_threshold`, `background_threshold`; `AP`, the mean over
        classes at `iou_threshold` (for .5 the metric's mAP_50; None without any object); `errors` by kind, each
        `dAP`, the gain of the mean when this kind alone is repaired, and `count`; `special`: the gains `false_positive`
        of scoring everything false below everything right, and `false_negative` of not counting what was not found.
    """
    if metric.gathered is None:
        return None
    objects, found = metric.flat(metric.gathered)
    errors = find_errors(
        objects, found, metric.num_classes, metric.max_detections[-1], iou_threshold, background_threshold
    )
    totals = np.bincount(errors.objects.label, minlength=metric.num_classes)
    defined = totals > 0
    label, score = errors.found.label, errors.found.scores

    def ap(keep: np.ndarray, labels: np.ndarray, scores: np.ndarray, correct: np.ndarray, count: np.ndarray) -> float:
        return mean_ap(labels[keep], scores[keep], correct[keep], np.where(defined, count, -1))

    everything = np.ones(len(label), dtype=bool)
    base = ap(everything, label, score, errors.correct, totals)
    result = {}
    for kind in KINDS:
        of_kind = errors.kind == kind
        repaired = of_kind & (errors.goal >= 0)
        labels = label.copy()
        labels[repaired] = errors.objects.label[errors.goal[repaired]]
        count = totals - _per_class(errors.objects, errors.missed, totals) if kind == MISSED else totals
        fixed = ap(~of_kind | repaired, labels, score, errors.correct | repaired, count)
        number = np.count_nonzero(errors.missed if kind == MISSED else of_kind)
        result[kind] = {"dAP": max(fixed - base, 0.0), "count": int(number)}
    ordered = ap(everything, label, errors.correct.astype(np.float64), errors.correct, totals)
    found_only = ap(
        everything, label, score, errors.correct, totals - _per_class(errors.objects, ~errors.detected, totals)
    )
    special = {"false_positive": ordered - base, "false_negative": found_only - base}
    return {
        "iou_threshold": iou_threshold,
        "background_threshold": background_threshold,
        "AP": _defined(base),
        "errors": {kind: {**of_kind, "dAP": _defined(of_kind["dAP"])} for kind, of_kind in result.items()},
        "special": {name: _defined(gain) for name, gain in special.items()},
    }


def find_errors(
    objects: Objects,
    found: Found,
    num_classes: int,
    max_detections: int,
    iou_threshold: float,
    background_threshold: float,
) -> Errors:
    """Assign the detections, and say of each that is false what kind of error it is; see `tide`.

    Args:
        objects: of the images evaluated.
        found: the detections in these images.
        num_classes: K.
        max_detections: the best of an image and class that count.
        iou_threshold: see `tide`.
        background_threshold: likewise.
    """
    groups = found.image * num_classes + found.label
    order = np.lexsort((-found.scores, groups))
    order = order[ranks(groups[order]) < max_detections]
    found, groups = found[order], groups[order]
    ignored = objects.iscrowd | objects.difficult
    pairs = overlapping_pairs(found, groups, objects, objects.image * num_classes + objects.label, iou_threshold)
    rows, winners = assign(pairs, groups, np.array([iou_threshold]), ignored[:, None], objects.iscrowd)
    winner = np.full(len(found), -1)
    winner[rows] = winners[:, 0, 0]
    counts = (winner < 0) | ~ignored[winner] if len(objects) else np.ones(len(found), dtype=bool)
    found, winner = found[counts], winner[counts]
    detected = np.zeros(len(objects), dtype=bool)
    detected[winner[winner >= 0]] = True
    detected, objects = detected[~ignored], objects[~ignored]
    correct = winner >= 0

    pairs = overlapping_pairs(found, found.image, objects, objects.image, background_threshold)
    same_class = found.label[pairs.detection] == objects.label[pairs.object]
    own_iou, own = _best(pairs[same_class], len(found))
    other_iou, other = _best(pairs[~same_class], len(found))
    kind = np.select(
        [
            correct,
            (own >= 0) & (own_iou < iou_threshold),
            other_iou >= iou_threshold,
            own_iou >= iou_threshold,
            (own < 0) & (other < 0),
        ],
        ["", LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    goal = np.select([kind == LOCALISATION, kind == CLASSIFICATION], [own, other], -1)
    goal[goal >= 0] = np.where(detected[goal[goal >= 0]], -1, goal[goal >= 0])
    reached = np.zeros(len(objects), dtype=bool)
    reached[goal[goal >= 0]] = True
    # The best detection of each object: the first of its run, where objects and then scores are in order.
    order = np.lexsort((-found.scores, goal))
    goal[order[ranks(goal[order]) > 0]] = -1
    return Errors(found, correct, kind, goal, objects, detected, ~detected & ~reached)


def mean_ap(labels: np.ndarray, scores: np.ndarray, correct: np.ndarray, totals: np.ndarray) -> float:
    """COCO's average precision, mean over the classes; NaN if there is none.

    Args:
        labels: (n,) int64 of detections.
        scores: (n,).
        correct: (n,) bool.
        totals: (K,) objects to find; -1 leaves a class out, 0 counts as no precision while there are detections of it.
    """
    order = np.lexsort((-scores, labels))
    bounds = np.searchsorted(labels[order], np.arange(len(totals) + 1))
    values = np.full(len(totals), np.nan)
    for k in np.flatnonzero(totals >= 0):
        right = correct[order[bounds[k] : bounds[k + 1]]]
        if totals[k]:
            values[k] = precision_at_recalls(right, ~right, int(totals[k])).mean()
        elif len(right):
            values[k] = 0.0
    return mean_of_defined(values)


def _best(pairs: Pairs, detections: int) -> tuple[np.ndarray, np.ndarray]:
    """Per detection the largest overlap and the first object that has it: (D,) float64 and int64; 0 and -1 if none."""
    order = np.lexsort((pairs.object, -pairs.iou, pairs.detection))
    order = order[ranks(pairs.detection[order]) == 0]
    iou, best = np.zeros(detections), np.full(detections, -1)
    iou[pairs.detection[order]], best[pairs.detection[order]] = pairs.iou[order], pairs.object[order]
    return iou, best


def _per_class(objects: Objects, chosen: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.bincount(objects.label[chosen], minlength=len(totals))


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
