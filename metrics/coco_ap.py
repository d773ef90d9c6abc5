"""COCO's average precision and recall, in pycocotools' arithmetic."""

from typing import Any

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

# As pycocotools has them, in float64. torch.linspace(...).tolist() is float32 and moves the result by 1e-4.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}


def coco_ap(
    ground_truth: dict[str, Any],
    detections: dict[int, dict[str, np.ndarray]],
    iou_thresholds: np.ndarray = IOU_THRESHOLDS,
    max_detections: tuple[int, int, int] = (1, 10, 100),
) -> dict[str, float]:
    """Evaluate detections as COCOeval does.

    Args:
        ground_truth: as `DetectionMetric` takes it.
        detections: by image index `boxes` (n, 4) XYXY, `scores` (n,), `labels` (n,); only these images are evaluated.
        iou_thresholds: those that mAP is the mean over.
        max_detections: per image, for recall; average precision uses the last one.

    Returns:
        mAP, mAP_50, ... as `DetectionMetric` names them; NaN where there is no object to find.
    """
    order = _image_order(ground_truth["image_ids"])
    truth = _truth(ground_truth, order, set(detections))
    evaluation = COCOeval_faster(truth, _results(truth, detections, order), "bbox", print_function=lambda *_: None)
    evaluation.params.iouThrs = np.asarray(iou_thresholds, dtype=np.float64)
    evaluation.params.recThrs = RECALL_THRESHOLDS
    evaluation.params.maxDets = list(max_detections)
    evaluation.evaluate()
    evaluation.accumulate()
    shape = (len(iou_thresholds), -1, len(ground_truth["class_names"]), 4, len(max_detections))
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64).reshape(shape)  # T, R, K, area, max
    recall = np.asarray(evaluation.eval["recall"], dtype=np.float64).reshape(shape)[:, 0]  # T, K, area, max

    values = {"mAP": _mean(precision[:, :, :, 0, -1])}
    for name, threshold in (("mAP_50", 0.5), ("mAP_75", 0.75), ("mAP_90", 0.9)):
        at = np.flatnonzero(np.isclose(iou_thresholds, threshold))  # 0.9 of a linspace is 0.8999999999999999
        if len(at):
            values[name] = _mean(precision[at, :, :, 0, -1])
    for name, area in AREAS.items():
        if area:
            values[f"mAP{name}"] = _mean(precision[:, :, :, area, -1])
    for position, count in enumerate(max_detections):
        values[f"mAR_{count}"] = _mean(recall[:, :, 0, position])
    for name, area in AREAS.items():
        if area:
            values[f"mAR{name}"] = _mean(recall[:, :, area, -1])
    for label, class_name in enumerate(ground_truth["class_names"]):
        values[f"AP/{class_name}"] = _mean(precision[:, :, label, 0, -1])
    return values


def _mean(values: np.ndarray) -> float:
    """COCOeval's: entries of -1 have no objects and do not count."""
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else float("nan")


def _image_order(image_ids: list[int] | list[str]) -> list[int]:
    """The id of each image within the evaluation.

    COCOeval walks through images by ascending id, which decides between detections of equal score: the ids here are
    the ranks of the file's own.
    """
    return (np.unique(np.asarray(image_ids), return_inverse=True)[1].ravel() + 1).tolist()


def _truth(ground_truth: dict[str, Any], order: list[int], covered: set[int]) -> COCO:
    keep = [i for i, image in enumerate(ground_truth["image_index"].tolist()) if image in covered]
    columns = {
        name: ground_truth[name][keep].tolist() for name in ("image_index", "boxes", "labels", "area", "iscrowd")
    }
    annotations = [
        # An id of 0 would count as "not matched" in COCOeval.
        {"id": n, "image_id": order[image], "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for n, (image, box, label, area, crowd) in enumerate(zip(*columns.values(), strict=True), 1)
    ]
    truth = COCO(print_function=lambda *_: None)
    truth.dataset = {
        "images": [{"id": order[image]} for image in sorted(covered)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(ground_truth["class_names"], 1)],
    }
    truth.createIndex()
    return truth


def _results(truth: COCO, detections: dict[int, dict[str, np.ndarray]], order: list[int]) -> COCO:
    annotations = []
    for image, found in detections.items():
        boxes = xywh(found["boxes"])
        areas = boxes[:, 2] * boxes[:, 3]
        rows = zip(boxes.tolist(), areas.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        for box, area, score, label in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": order[image],
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    results = COCO(print_function=lambda *_: None)
    results.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": annotations}
    results.createIndex()
    return results


def xywh(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) XYXY of any float type to float64 XYWH."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
