"""Random ground truth and detections, and what pycocotools says about them."""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIDE = 400


def ground_truth(boxes: list[tuple[int, int, list[float]]], images: int = 1, classes: int = 1, **marks: Any) -> dict:
    """Ground truth from a list of (image, label, XYWH box); `marks` are arrays that replace the defaults."""
    xywh = np.array([box for _, _, box in boxes], dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    return {
        "image_ids": list(range(1, images + 1)),
        "image_index": np.array([image for image, _, _ in boxes], dtype=np.int64),
        "boxes": xywh,
        "labels": np.array([label for _, label, _ in boxes], dtype=np.int64),
        "area": xywh[:, 2] * xywh[:, 3],
        "iscrowd": np.zeros(count, dtype=bool),
        "difficult": np.zeros(count, dtype=bool),
        "annotation_ids": np.arange(1, count + 1),
        "heights": np.full(images, SIDE),
        "widths": np.full(images, SIDE),
        "class_names": [f"class {k}" for k in range(classes)],
        "category_ids": list(range(1, classes + 1)),
        **{name: np.asarray(values) for name, values in marks.items()},
    }


def detections(*rows: tuple[int, float, list[float]]) -> dict[str, np.ndarray]:
    """One image's detections from (label, score, XYWH box)."""
    boxes = np.array([box for _, _, box in rows], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "scores": np.array([score for _, score, _ in rows], dtype=np.float32),
        "labels": np.array([label for label, _, _ in rows], dtype=np.int64),
    }


def random_case(
    seed: int, images: int = 12, classes: int = 4, objects: int = 6, found: int = 20, grid: float = 1.0
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """A dataset with crowds, empty images, an absent class, tied scores, id gaps, areas unlike the boxes', and its
    detections: moved objects, duplicates, background, zero-size boxes. A coarse `grid` makes equal overlaps.
    """
    rng = np.random.default_rng(seed)
    count = images * objects
    image_index = np.sort(rng.integers(0, max(images * 3 // 4, 1), count))  # the last quarter is empty
    size = np.maximum(np.round(np.exp(rng.uniform(np.log(6), np.log(190), (count, 2))) / grid), 1) * grid
    xywh = np.concatenate([np.round(rng.uniform(0, 200, (count, 2)) / grid) * grid, size], axis=1)
    labels = rng.integers(0, max(classes - 1, 1), count)  # the last class is absent
    if count:
        xywh[rng.integers(count)] = [5, 5, 0, 7]
    truth = ground_truth([], images, classes)
    truth |= {
        "image_ids": (rng.permutation(10 * images)[:images] + 3).tolist(),
        "image_index": image_index,
        "boxes": xywh,
        "labels": labels,
        "area": xywh[:, 2] * xywh[:, 3] * rng.uniform(0.4, 1.1, count),
        "iscrowd": rng.random(count) < 0.15,
        "difficult": np.zeros(count, dtype=bool),
        "annotation_ids": np.arange(1, count + 1),
        "category_ids": (np.arange(classes) * 7 + 2).tolist(),
    }
    results = []
    for image in range(images):
        sources = np.flatnonzero(image_index == image)
        number = found if len(sources) else rng.integers(0, 4)
        boxes = np.concatenate([xywh[sources], [[20.0, 30.0, 40.0, 50.0]]])
        pick = rng.integers(0, len(boxes), number)
        moved = boxes[pick]
        moved[:, :2] += np.round(moved[:, 2:] * rng.normal(0, 0.12, (number, 2)) / grid) * grid
        moved[:, 2:] = np.round(moved[:, 2:] * np.exp(rng.normal(0, 0.15, (number, 2))) / grid) * grid
        own = np.append(labels[sources], 0)[pick]
        label = np.where(rng.random(number) < 0.8, own, rng.integers(0, classes, number))
        rows = zip(label.tolist(), (np.round(rng.random(number) * 20) / 20).tolist(), moved.tolist(), strict=True)
        results.append(detections(*rows))
    return truth, results


def pycocotools_evaluation(
    truth: dict[str, Any], results: list[dict[str, Any]], thresholds: np.ndarray | None = None, images: Any = None
) -> COCOeval:
    """COCO's own evaluator, after `summarize` where its thresholds are the usual ones."""
    annotated, detected = COCO(), COCO()
    common = {
        "images": [{"id": identity, "height": SIDE, "width": SIDE} for identity in truth["image_ids"]],
        "categories": [{"id": identity, "name": str(identity)} for identity in truth["category_ids"]],
    }
    annotated.dataset = common | {
        "annotations": [
            {
                "id": int(truth["annotation_ids"][i]),
                "image_id": truth["image_ids"][truth["image_index"][i]],
                "category_id": truth["category_ids"][truth["labels"][i]],
                "bbox": truth["boxes"][i].tolist(),
                "area": float(truth["area"][i]),
                "iscrowd": int(truth["iscrowd"][i]),
            }
            for i in range(len(truth["labels"]))
        ]
    }
    detected.dataset = common | {
        "annotations": [
            {**result, "id": i, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for i, result in enumerate(results, 1)
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
        detected.createIndex()
        evaluation = COCOeval(annotated, detected, "bbox")
        if thresholds is not None:
            evaluation.params.iouThrs = thresholds
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        if thresholds is None:
            evaluation.summarize()
    return evaluation
