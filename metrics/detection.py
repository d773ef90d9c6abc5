"""Average precision and recall of detections: COCO's and PASCAL VOC's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from errors import UserError
from metrics.coco import AREAS, IOU_THRESHOLDS, coco_evaluation, mean_of_defined
from metrics.exact import ExactMetric
from metrics.matching import Found, Objects
from metrics.voc import voc_average_precision

PROTOCOLS = ("coco", "voc07", "voc12")


class DetectionMetric(ExactMetric):
    """Average precision of a split: equal to pycocotools, and the same on any number of processes.

    `protocol="coco"` yields `mAP`, `mAP_50`, `mAP_75` (mean over classes, the first over `iou_thresholds`),
    `mAP_small`, `mAP_medium`, `mAP_large` (by the object's area: up to 32^2, 96^2, beyond), the average recalls
    `mAR_1`, `mAR_10`, `mAR_100` (by number of detections per image and class), `mAR_small`, `mAR_medium`, `mAR_large`,
    and `AP/<class name>`. `voc07` (11 points) and `voc12` (all points) yield `mAP_50` and `AP/<class name>` at an
    overlap of .5, and `mAP`, which is VOC's mAP: the same number. With `iou_thresholds` of your own there is one key
    for each, like `mAP_90`, in place of 50 and 75, and `mAP` and `AP/...` are the means over them.

    What is not defined, because there is no such object, is NaN. Difficult objects (VOC) are ignored in all protocols.

    Args:
        ground_truth: per image `image_ids` (N), per object `image_index`, `boxes` (M, 4) float64 XYWH pixels of the
            original image, `labels`, `area`, `iscrowd`, `difficult`; `class_names` and `category_ids` of the K labels.
            A dataset index is a position in `image_ids`.
        protocol: `coco`, `voc07` or `voc12`.
        iou_thresholds: overlaps in (0, 1]; default .5, .55, ..., .95 for COCO and .5 for VOC.
        max_detections: most detections per image and class (COCO), ascending; precision is computed with the last.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        *,
        protocol: str = "coco",
        iou_thresholds: Sequence[float] | None = None,
        max_detections: Sequence[int] = (1, 10, 100),
    ) -> None:
        super().__init__(len(ground_truth["image_ids"]))
        if protocol not in PROTOCOLS:
            raise UserError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
        self.ground_truth = ground_truth
        self.protocol = protocol
        self.num_classes = len(ground_truth["class_names"])
        if iou_thresholds is None:
            self.iou_thresholds = IOU_THRESHOLDS if protocol == "coco" else IOU_THRESHOLDS[:1]
            self.named = {"mAP_50": 0, "mAP_75": 5} if protocol == "coco" else {"mAP_50": 0}
        else:
            self.iou_thresholds = np.asarray(iou_thresholds, dtype=np.float64)
            self.named = {f"mAP_{100 * t:g}": i for i, t in enumerate(self.iou_thresholds)}
        if not len(self.iou_thresholds) or not ((self.iou_thresholds > 0) & (self.iou_thresholds <= 1)).all():
            raise UserError(f"iou_thresholds are {iou_thresholds}; give at least one, each above 0 and at most 1")
        self.max_detections = tuple(sorted(max_detections))
        if not self.max_detections or self.max_detections[0] < 1:
            raise UserError(f"max_detections are {max_detections}; give at least one, each at least 1")

    def update(self, index: Any, detections: Sequence[Mapping[str, Any]], *, box_format: str = "xyxy") -> None:
        """Add a batch.

        Args:
            index: (B,) dataset indices.
            detections: per image `boxes` (n, 4) pixels of the original image, `scores` (n,), `labels` (n,), as tensors
                or arrays in any order. A later result of an index replaces an earlier one.
            box_format: `xyxy` or `xywh`.

        Raises:
            UserError: a box or score is not finite, or a label is none of the K.
        """
        for i, one in zip(torch.as_tensor(index).tolist(), detections, strict=True):
            # float64 holds float32 numbers and labels exactly, and their differences far beyond float32.
            columns = [
                torch.as_tensor(one[key]).detach().to("cpu", torch.float64) for key in ("boxes", "scores", "labels")
            ]
            rows = torch.cat([columns[0].reshape(-1, 4), columns[1][:, None], columns[2][:, None]], dim=1).numpy()
            if not np.isfinite(rows).all():
                raise UserError(
                    f"the detections of image {self.ground_truth['image_ids'][i]!r} are not finite: the network has "
                    "diverged; lower the learning rate or clip the gradients"
                )
            # Images and labels are later combined to one number: a label beyond the last would be of the next image.
            strange = rows[(rows[:, 5] < 0) | (rows[:, 5] >= self.num_classes), 5]
            if len(strange):
                raise UserError(
                    f"a detection of image {self.ground_truth['image_ids'][i]!r} has label {strange[0]:g}, but the "
                    f"dataset's labels are 0 to {self.num_classes - 1}: the network was built for another dataset"
                )
            if box_format == "xyxy":
                rows[:, 2:4] -= rows[:, :2]
            self.samples[i] = rows  # (n, 6): x, y, width, height, score, label

    def value(self, samples: dict[int, np.ndarray]) -> dict[str, float]:
        """The metric of the samples, by ascending index; objects in other images are left out."""
        objects, found = self.flat(samples)
        return self._coco(objects, found) if self.protocol == "coco" else self._voc(objects, found)

    def flat(self, samples: dict[int, np.ndarray]) -> tuple[Objects, Found]:
        """Objects and detections of the images in `samples`, images numbered by ascending id as in pycocotools."""
        truth = self.ground_truth
        ids = truth["image_ids"]
        order = sorted(samples, key=lambda index: (isinstance(ids[index], str), ids[index]))
        position = np.full(len(ids), -1)
        position[order] = np.arange(len(order))
        image = position[truth["image_index"]]
        objects = Objects(
            image=image,
            label=truth["labels"],
            boxes=truth["boxes"],
            area=truth["area"],
            iscrowd=truth["iscrowd"],
            difficult=truth["difficult"],
        )[image >= 0]
        parts = [samples[index] for index in order]
        rows = np.concatenate([np.zeros((0, 6)), *parts])
        found = Found(
            image=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
            label=rows[:, 5].astype(np.int64),
            boxes=rows[:, :4],
            scores=rows[:, 4],
        )
        return objects, found

    def _coco(self, objects: Objects, found: Found) -> dict[str, float]:
        precision, recall = coco_evaluation(objects, found, self.num_classes, self.iou_thresholds, self.max_detections)
        result = {"mAP": mean_of_defined(precision[..., 0])}
        result |= {name: mean_of_defined(precision[t, ..., 0]) for name, t in self.named.items()}
        result |= {f"mAP_{area}": mean_of_defined(precision[..., a]) for a, area in enumerate(AREAS) if a}
        result |= {f"mAR_{most}": mean_of_defined(recall[..., 0, m]) for m, most in enumerate(self.max_detections)}
        result |= {f"mAR_{area}": mean_of_defined(recall[..., a, -1]) for a, area in enumerate(AREAS) if a}
        names = self.ground_truth["class_names"]
        return result | {f"AP/{name}": mean_of_defined(precision[:, :, k, 0]) for k, name in enumerate(names)}

    def _voc(self, objects: Objects, found: Found) -> dict[str, float]:
        eleven_points = self.protocol == "voc07"
        average = np.stack([  # (T, K)
            voc_average_precision(objects, found, self.num_classes, threshold, eleven_points)
            for threshold in self.iou_thresholds
        ])  # fmt: skip
        result = {"mAP": mean_of_defined(average)}
        result |= {name: mean_of_defined(average[t]) for name, t in self.named.items()}
        names = self.ground_truth["class_names"]
        return result | {f"AP/{name}": mean_of_defined(average[:, k]) for k, name in enumerate(names)}

    def coco_results(self) -> list[dict[str, Any]]:
        """All detections in COCO's results format, with the image and category ids of the annotation file.

        Boxes are XYWH; written as JSON and evaluated again, they give the same digits. On rank 0, after `compute`.

        Raises:
            RuntimeError: elsewhere, or before.
        """
        if self.gathered is None:
            raise RuntimeError("the detections of all processes are known on rank 0 after compute()")
        image_ids, category_ids = self.ground_truth["image_ids"], self.ground_truth["category_ids"]
        return [
            {
                "image_id": image_ids[index],
                "category_id": category_ids[int(row[5])],
                "bbox": row[:4],
                "score": row[4],
            }
            for index, rows in self.gathered.items()
            for row in rows.tolist()
        ]
