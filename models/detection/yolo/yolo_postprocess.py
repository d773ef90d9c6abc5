"""From the boxes and scores of YOLO to detections."""

import torch
from torch import Tensor

from models.detection.boxes import clip_boxes, take_rows
from models.detection.detector import Detections
from models.detection.postprocessing.nms import HardNMS, SoftNMS
from models.detection.postprocessing.postprocess import suppress


class YOLOPostprocessor:
    """The best (box, class) pairs of an image, clipped to it, suppressed within each class.

    Args:
        candidates: pairs that enter suppression.
        max_detections: D, kept per image.
        score_threshold: pairs at or below it are dropped; the default is what darknet evaluates YOLOv2 and v3 with.
        nms: the suppression; None is darknet's `HardNMS` at an overlap of .45.
    """

    def __init__(
        self,
        *,
        candidates: int = 2000,
        max_detections: int = 100,
        score_threshold: float = 0.005,
        nms: HardNMS | SoftNMS | None = None,
    ) -> None:
        self.candidates = candidates
        self.max_detections = max_detections
        self.score_threshold = score_threshold
        self.nms = nms or HardNMS(iou_threshold=0.45)

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, image_size: Tensor) -> Detections:
        """Detect in all images of a batch at once.

        Args:
            boxes: (B, A, 4) float32 XYXY.
            scores: (B, A, K) float32, objectness times class probability.
            image_size: (B, 2), height and width of the images within the padded input.

        Returns:
            D detections per image.
        """
        num_classes = scores.shape[2]
        pairs = scores.flatten(1)  # (B, A * K)
        score, pair = pairs.topk(min(self.candidates, pairs.shape[1]), sorted=True)
        index, labels = pair // num_classes, pair % num_classes  # (B, N)
        boxes = clip_boxes(take_rows(boxes, index), image_size)
        return suppress(boxes, score.where(score > self.score_threshold, 0), labels, self.nms, self.max_detections)
