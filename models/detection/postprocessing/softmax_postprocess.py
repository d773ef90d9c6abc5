"""From SSD's raw outputs to detections."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.box_coder import BoxCoder
from models.detection.boxes import clip_boxes, take_rows
from models.detection.detector import Detections
from models.detection.postprocessing.nms import HardNMS, SoftNMS
from models.detection.postprocessing.postprocess import DensePostprocessor, suppress


class SoftmaxPostprocessor(DensePostprocessor):
    """Best boxes of every class by softmax, decoded, clipped to the image, suppressed within each class.

    Args:
        candidates_per_class: boxes of each class that enter suppression, 400 in the authors' program and torchvision.
        max_detections: D, kept per image.
        score_threshold: boxes at or below it are dropped before suppression.
        nms: the suppression; None is `HardNMS` at an overlap of .45.
    """

    def __init__(
        self,
        *,
        candidates_per_class: int = 400,
        max_detections: int = 200,
        score_threshold: float = 0.01,
        nms: HardNMS | SoftNMS | None = None,
    ) -> None:
        self.candidates_per_class = candidates_per_class
        self.max_detections = max_detections
        self.score_threshold = score_threshold
        self.nms = nms or HardNMS(iou_threshold=0.45)

    @torch.no_grad()
    def __call__(
        self,
        class_logits: Sequence[Tensor],
        box_codes: Sequence[Tensor],
        anchors: Tensor,
        box_coder: BoxCoder,
        image_size: Tensor,
    ) -> Detections:
        """See `DensePostprocessor`; the logits are (B, A_l, K + 1), the background first."""
        scores = torch.cat([level.float() for level in class_logits], 1).softmax(-1)[..., 1:].transpose(1, 2)
        scores, index = scores.topk(min(self.candidates_per_class, len(anchors)), sorted=False)  # (B, K, N)
        labels = torch.arange(scores.shape[1], device=scores.device)[:, None].expand_as(scores).flatten(1)
        scores = scores.where(scores > self.score_threshold, 0)
        scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
        codes = torch.cat([level.float() for level in box_codes], 1)
        boxes = clip_boxes(box_coder.decode(codes, anchors), image_size)
        boxes = take_rows(boxes, index.flatten(1).gather(1, order))
        return suppress(boxes, scores, labels.gather(1, order), self.nms, self.max_detections)
