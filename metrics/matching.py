"""Which detection finds which object: overlaps and COCO's greedy assignment, on flat arrays.

The arithmetic is that of pycocotools (`bbIou` and `COCOeval.evaluateImg`) in float64, operation by operation, so that
the results have the same bits; only the order of the loops differs. pycocotools walks over images, classes, area
ranges and thresholds in Python; here the best detections of all groups choose at once, then the second-best, and so
on: there are as many rounds as one group has detections.
"""

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

# Pairs of boxes compared at a time: bounds the memory at some 200 MB.
PAIRS_AT_A_TIME = 1 << 21


class _Columns:
    def __getitem__(self, rows: np.ndarray) -> "_Columns":
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


@dataclass(frozen=True)
class Objects(_Columns):
    """M annotated objects.

    Attributes:
        image: (M,) int64, the position of the image.
        label: (M,) int64.
        boxes: (M, 4) float64 XYWH pixels.
        area: (M,) float64, square pixels.
        iscrowd: (M,) bool: regions of many objects, which any number of detections may fall into unpunished.
        difficult: (M,) bool: objects that need not be found.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class Found(_Columns):
    """D detections.

    Attributes:
        image: (D,) int64, the position of the image.
        label: (D,) int64.
        boxes: (D, 4) float64 XYWH pixels.
        scores: (D,) float64.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Pairs(_Columns):
    """P overlapping detections and objects, sorted by detection, then by object.

    Attributes:
        detection: (P,) int64 row among the detections.
        object: (P,) int64 row among the objects.
        iou: (P,) float64; for crowds the share of the detection inside the crowd.
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray


def ranks(groups: np.ndarray) -> np.ndarray:
    """Position of each element within its run of equal values: [5, 5, 2, 2, 2] -> [0, 1, 0, 1, 2]."""
    positions = np.arange(len(groups))
    starts = np.ones(len(groups), dtype=bool)
    starts[1:] = groups[1:] != groups[:-1]
    return positions - np.maximum.accumulate(np.where(starts, positions, 0))


def overlaps(detections: np.ndarray, objects: np.ndarray, iscrowd: np.ndarray) -> np.ndarray:
    """Overlap of (P, 4) with (P, 4) float64 XYWH boxes, row by row: (P,) float64."""
    ends = np.minimum(detections[:, :2] + detections[:, 2:], objects[:, :2] + objects[:, 2:])
    width, height = (ends - np.maximum(detections[:, :2], objects[:, :2])).T
    area = detections[:, 2] * detections[:, 3]
    intersection = width * height
    union = np.where(iscrowd, area, area + objects[:, 2] * objects[:, 3] - intersection)
    touching = (width > 0) & (height > 0)
    return np.divide(intersection, union, out=np.zeros_like(area), where=touching)


def overlapping_pairs(
    found: Found, found_groups: np.ndarray, objects: Objects, object_groups: np.ndarray, least: float
) -> Pairs:
    """All pairs of a detection and an object of the same group that overlap by `least` or more.

    Args:
        found: D detections.
        found_groups: (D,) int64, for instance the image, or image and class in one number.
        objects: M objects.
        object_groups: (M,) int64.
        least: positive.
    """
    order = np.argsort(object_groups, kind="stable")
    first = np.searchsorted(object_groups[order], found_groups, side="left")
    counts = np.searchsorted(object_groups[order], found_groups, side="right") - first
    ends = np.cumsum(counts)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    start = 0
    while start < len(found):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + PAIRS_AT_A_TIME, side="right")), start + 1)
        rows = np.repeat(np.arange(start, stop), counts[start:stop])
        columns = order[np.repeat(first[start:stop], counts[start:stop]) + ranks(rows)]
        iou = overlaps(found.boxes[rows], objects.boxes[columns], objects.iscrowd[columns])
        keep = iou >= least
        parts.append((rows[keep], columns[keep], iou[keep]))
        start = stop
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def assign(
    pairs: Pairs, found_groups: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, iscrowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy assignment, for several overlap thresholds and several ways of ignoring objects at once.

    In descending order of score, each detection takes the free object of its group that it overlaps most, if by the
    threshold or more; among equals the last one. Objects to ignore are taken only where no other is left, and crowds
    are never used up.

    Args:
        pairs: of detections that are sorted by group and, within it, by descending score.
        found_groups: (D,) int64 group of each detection.
        thresholds: (T,) float64.
        ignored: (M, A) bool.
        iscrowd: (M,) bool.

    Returns:
        rows: (P,) int64, the detections that overlap any object; all others find nothing.
        winners: (P, T, A) int64, the object that each of them takes, -1 for none.
    """
    num_thresholds, num_ranges = len(thresholds), ignored.shape[1]
    columns = num_thresholds * num_ranges
    limits = np.repeat(np.minimum(thresholds, 1 - 1e-10), num_ranges)  # (T * A,)
    counted = np.tile(~ignored, (1, num_thresholds))  # (M, T * A)
    taken = np.zeros_like(counted)

    rows, segments, sizes = np.unique(pairs.detection, return_inverse=True, return_counts=True)
    rounds = ranks(found_groups[rows])
    # Pairs by round, then detection, then ascending overlap: the last admissible pair of a detection is its best.
    order = np.lexsort((pairs.object, pairs.iou, segments, rounds[segments]))
    objects, iou = pairs.object[order], pairs.iou[order]
    turns = np.argsort(rounds, kind="stable")  # the detections in the order of the reordered pairs
    first = np.concatenate([[0], np.cumsum(sizes[turns])])
    place = 1 + np.arange(len(objects)) - np.repeat(first[:-1], sizes[turns])
    priority = len(objects) + 1  # lifts the objects that count over those to ignore

    winners = np.full((len(rows), columns), -1)
    bounds = np.searchsorted(rounds[turns], np.arange(rounds.max(initial=-1) + 2))
    for start, stop in pairwise(bounds):
        these = slice(first[start], first[stop])
        candidates = objects[these]
        admissible = (~taken[candidates] | iscrowd[candidates, None]) & (iou[these, None] >= limits)
        keys = (place[these, None] + priority * counted[candidates]) * admissible
        best = np.maximum.reduceat(keys, first[start:stop] - first[start], axis=0)  # (detections, T * A)
        detection, column = np.nonzero(best)
        winner = objects[first[start + detection] + best[detection, column] % priority - 1]
        winners[turns[start + detection], column] = winner
        taken[winner, column] = True
    return rows, winners.reshape(len(rows), num_thresholds, num_ranges)
