"""The integral loss: several classifiers, each for an overlap of its own, on the same boxes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.detection.detector import Detections, Targets
from models.detection.matcher import NEGATIVE
from models.detection.roi.roi_head import ClassPredictor, RoIHead, class_scores
from models.detection.roi.roi_training import box_losses, class_losses, spread
from models.loss_term import LossTerm


class IntegralRoIHead(RoIHead):
    """Faster R-CNN's second stage with one classifier per overlap (Zagoruyko et al., MultiPathNet, BMVC 2016).

    Cascade R-CNN compares itself with it (section 3.3). The classifiers share the box head; their losses are summed and
    their probabilities averaged. Boxes are learnt at the lowest overlap alone.

    Args:
        channels: of the features.
        num_classes: K.
        positive_ious: per classifier the overlap from which a box is positive, the lowest first.
        **options: of `RoIHead`, without `positive_iou` and `iterations`.
    """

    def __init__(
        self, channels: int, num_classes: int, *, positive_ious: Sequence[float] = (0.5, 0.6, 0.7), **options: Any
    ) -> None:
        super().__init__(channels, num_classes, positive_iou=positive_ious[0], **options)
        self.positive_ious = tuple(positive_ious)
        width = self.box_head.channels
        self.classifiers = nn.ModuleList(ClassPredictor(width, num_classes) for _ in positive_ious[1:])

    def predict(self, features: Sequence[Tensor], boxes: Tensor, taken: Tensor) -> tuple[list[Tensor], Tensor]:
        """For boxes (B, P, 4) taken or not (B, P): logits (B, P, K + 1) per classifier, and codes (B, P, 4, R)."""
        x = self.box_head(self.extractor(features, boxes, taken))
        logits, codes = self.predictor(x)
        all_logits = [logits, *(classifier(x) for classifier in self.classifiers)]
        return [spread(y, taken) for y in all_logits], spread(codes, taken)

    def loss_terms(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, targets: Targets, image_size: Tensor
    ) -> dict[str, LossTerm]:
        """Terms `class_loss`, the sum over the classifiers, and `box_loss`; arguments as of `RoIHead`."""
        samples = self.sample(boxes, valid, targets)
        all_logits, codes = self.predict(features, samples.boxes, samples.taken)
        count = samples.taken.sum(1).clamp(min=1).float()
        class_loss = sum(
            class_losses(logits, samples.labels.where(samples.iou >= positive_iou, NEGATIVE), samples.taken)
            for logits, positive_iou in zip(all_logits, self.positive_ious, strict=True)
        )
        box_loss = box_losses(
            codes, samples, self.box_coder, max_positives=self.sampler.max_positives, beta=self.smooth_l1_beta
        )
        return {
            "class_loss": LossTerm(class_loss, count, 1.0, 0.0),
            "box_loss": LossTerm(box_loss, count, 1.0, 0.0),
        }

    def detect(self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, image_size: Tensor) -> Detections:
        """Detections from proposals (B, P, 4), `valid` (B, P) False where padded."""
        all_logits, codes = self.predict(features, boxes, valid)
        scores = torch.stack([class_scores(logits, valid) for logits in all_logits]).mean(0)
        return self.postprocessor(scores, codes, boxes, self.box_coder, image_size)

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        more = [
            f"classifiers.{i}.{name}"
            for i, classifier in enumerate(self.classifiers)
            for name in classifier.class_parameters
        ]
        return super().class_parameters() + more
