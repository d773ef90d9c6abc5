"""Mean IoU and its companions, exact: one confusion matrix of int64 counts over the whole dataset."""

from typing import Any

import numpy as np

from metrics.exact import ExactMetric

IGNORED = 255


class SegmentationMetric(ExactMetric):
    """Pixel accuracy, mean accuracy, mean IoU, frequency-weighted IoU (FCN section 5), per-class IoU, boundary IoU.

    Args:
        class_names: of the K classes in order.
        size: number of pictures of the dataset, to check that all were seen; None leaves that unchecked.
        boundary: also compute boundary IoU, which costs an erosion per class and picture.
    """

    def __init__(self, class_names: list[str], size: int | None = None, *, boundary: bool = False) -> None:
        super().__init__(size)
        self.class_names = class_names
        self.boundary = boundary
        self.confusion: np.ndarray | None = None  # (K, K) int64 on rank 0 after compute, rows the truth

    def update(self, index: int, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Add a picture.

        Args:
            index: of the picture in its dataset.
            prediction: (H, W) integers 0..K-1, at the size of the original picture.
            truth: (H, W) integers 0..K-1, or 255 for pixels that count nowhere.
        """
        # Only the cells that are not zero are kept: a picture shows few of all pairs of classes.
        confusion = confusion_matrix(prediction, truth, len(self.class_names)).ravel()
        cells = np.flatnonzero(confusion)
        sample: dict[str, Any] = {"cells": cells, "counts": confusion[cells]}
        if self.boundary:
            sample["boundary"] = boundary_counts(prediction, truth, len(self.class_names))
        self.samples[int(index)] = sample

    def value(self, samples: dict[int, Any]) -> dict[str, float]:
        """The metrics of all pictures."""
        classes = len(self.class_names)
        confusion = np.zeros(classes * classes, np.int64)
        for sample in samples.values():
            confusion[sample["cells"]] += sample["counts"]
        self.confusion = confusion.reshape(classes, classes)
        values = scores(self.confusion, self.class_names)
        if self.boundary:
            totals = np.zeros((classes, 2), np.int64)
            for sample in samples.values():
                totals += sample["boundary"]
            values["boundary_mIoU"] = float(nanmean(divided(totals[:, 0], totals[:, 1])))
        return values

    def reset(self) -> None:
        """Forget all pictures."""
        super().reset()
        self.confusion = None


def confusion_matrix(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each class were taken for each class, (K, K) int64, rows the truth.

    Args:
        prediction: (H, W) integers 0..K-1.
        truth: (H, W) integers 0..K-1, or 255 for pixels that are left out.
        classes: K.

    Raises:
        ValueError: the arrays differ in shape, or hold what is no class.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has the shape {prediction.shape}, the truth {truth.shape}")
    if prediction.max(initial=0) >= classes:
        raise ValueError(f"the prediction holds the label {int(prediction.max())}; there are {classes} classes")
    # Ignored pixels are counted like a class, in rows that are cut off: quicker than to pick out the others.
    cells = np.multiply(truth, classes, dtype=np.intp)
    cells += prediction
    counts = np.bincount(cells.ravel(), minlength=(IGNORED + 1) * classes)
    if len(counts) > (IGNORED + 1) * classes or counts[classes * classes : IGNORED * classes].any():
        raise ValueError(f"the truth holds the label {int(truth[truth != IGNORED].max())}; there are {classes} classes")
    return counts[: classes * classes].reshape(classes, classes)


def scores(confusion: np.ndarray, class_names: list[str]) -> dict[str, float]:
    """The four metrics of FCN and the IoU per class from a confusion matrix (K, K) int64, rows the truth.

    A class that neither occurs nor is predicted has no IoU (NaN) and takes no part in the mean; one that is predicted
    without occurring has 0. A class that does not occur takes no part in the mean accuracy.
    """
    hits = confusion.diagonal()
    truth, predicted = confusion.sum(1), confusion.sum(0)
    iou = divided(hits, truth + predicted - hits)
    total = int(truth.sum())
    frequent = truth > 0
    return {
        "mIoU": float(nanmean(iou)),
        "pixel_accuracy": int(hits.sum()) / total if total else float("nan"),
        "mean_accuracy": float(nanmean(divided(hits, truth))),
        "fwIoU": float((truth[frequent] * iou[frequent]).sum() / total) if total else float("nan"),
        **{f"IoU/{name}": float(value) for name, value in zip(class_names, iou, strict=True)},
    }


def boundary_counts(prediction: np.ndarray, truth: np.ndarray, classes: int, share: float = 0.02) -> np.ndarray:
    """Intersection and union of the boundary regions of every class (Cheng et al.: "Boundary IoU", CVPR 2021).

    A class's boundary region are its pixels within a distance of its contour; the edge of the picture counts as
    contour. Pixels labelled 255 belong to no class.

    Args:
        prediction: (H, W).
        truth: (H, W).
        classes: K.
        share: of the picture's diagonal that the distance is, in 3 x 3 erosions.

    Returns:
        (K, 2) int64.
    """
    import cv2  # only here, so that the rest needs no OpenCV

    height, width = truth.shape
    distance = max(round(share * (height**2 + width**2) ** 0.5), 1)
    kernel = np.ones((3, 3), np.uint8)
    ignored = truth == IGNORED
    counts = np.zeros((classes, 2), np.int64)
    for k in np.union1d(np.unique(prediction[~ignored]), np.unique(truth[~ignored])):
        regions = []
        for labels in (prediction, truth):
            mask = ((labels == k) & ~ignored).astype(np.uint8)
            inner = cv2.erode(mask, kernel, iterations=distance, borderType=cv2.BORDER_CONSTANT, borderValue=0)
            regions.append(mask > inner)
        counts[k] = (regions[0] & regions[1]).sum(), (regions[0] | regions[1]).sum()
    return counts


def divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise in float64; NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def nanmean(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
