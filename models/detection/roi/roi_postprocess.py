"""From the predictions of a second stage to detections."""

import torch
from torch import Tensor

from models.detection.box_coder import BoxCoder
from models.detection.boxes import clip_boxes, take_rows
from models.detection.detector import Detections
from models.detection.postprocessing.nms import HardNMS, SoftNMS
from models.detection.postprocessing.postprocess import suppress
from models.detection.precision import at_least_float32
from models.detection.roi.roi_training import own_codes


class RoIPostprocessor:
    """Every class of every proposal is a candidate of its own: threshold, decode, clip, suppress within the class.

    Args:
        max_detections: D, kept per image.
        score_threshold: candidates at or below it are dropped.
        min_size: boxes with a side below it, in pixels, after clipping are dropped.
        nms: the suppression; None is `HardNMS()` at an overlap of .5.
    """

    def __init__(
        self,
        *,
        max_detections: int = 100,
        score_threshold: float = 0.05,
        min_size: float = 1e-2,
        nms: HardNMS | SoftNMS | None = None,
    ) -> None:
        self.max_detections = max_detections
        self.score_threshold = score_threshold
        self.min_size = min_size
        self.nms = nms or HardNMS()

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, box_codes: Tensor, boxes: Tensor, box_coder: BoxCoder, image_size: Tensor
    ) -> Detections:
        """Detect in all images of a batch at once.

        Args:
            scores: (B, P, K) float32, 0 where padded.
            box_codes: (B, P, 4, R), R = K, or 1 where all classes share their codes.
            boxes: (B, P, 4) XYXY, what the codes refer to.
            box_coder: decodes the codes.
            image_size: (B, 2), height and width of the images within the padded input.

        Returns:
            D detections per image.
        """
        num_classes = scores.shape[2]
        scores = scores.where(scores > self.score_threshold, 0).flatten(1)  # (B, P * K)
        count = max(int((scores > 0).sum(1).amax()), 1)
        scores, pair = scores.topk(count, sorted=True)
        row, labels = pair // num_classes, pair % num_classes  # (B, N)
        image = torch.arange(len(row), device=row.device)[:, None]
        codes = at_least_float32(own_codes(box_codes[image, row], labels))
        boxes = clip_boxes(box_coder.decode(codes, boxes[image, row]), image_size)
        large = (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1)
        # Suppression wants the candidates without a score last.
        scores, order = scores.where(large, 0).sort(dim=1, descending=True, stable=True)
        return suppress(take_rows(boxes, order), scores, labels.gather(1, order), self.nms, self.max_detections)
