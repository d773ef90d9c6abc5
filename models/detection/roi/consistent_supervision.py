"""Consistent supervision of AugFPN (Guo et al., CVPR 2020, section 3.1)."""

from collections.abc import Sequence

from torch import Tensor

from errors import UserError
from models.detection.box_coder import BoxCoder
from models.detection.detector import Targets
from models.detection.roi.box_heads import TwoFCHead
from models.detection.roi.roi_extractor import RoIExtractor, with_image
from models.detection.roi.roi_head import BoxHead, BoxPredictor, RoIHead
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.roi.roi_training import RoISamples, box_losses, class_losses, spread
from models.detection.sampler import RandomSampler
from models.loss_term import LossTerm


class ConsistentRoIHead(RoIHead):
    """A second stage that also supervises what its pyramid was made of.

    The sampled proposals are pooled from every lateral of the pyramid as well, and a second head of the same kind, one
    for all laterals, predicts from each: features of all levels learn to mean the same before they are added. The
    second head takes part in the loss alone, so that detection costs nothing more.

    Args:
        channels: see `RoIHead`, like all that follows but the last one.
        num_classes: K.
        auxiliary_weight: of the losses on the laterals.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        extractor: RoIExtractor | None = None,
        box_head: BoxHead | None = None,
        sampler: RandomSampler | None = None,
        box_coder: BoxCoder | None = None,
        postprocessor: RoIPostprocessor | None = None,
        positive_iou: float = 0.5,
        min_negative_iou: float = 0.0,
        class_agnostic: bool = False,
        smooth_l1_beta: float = 0.0,
        auxiliary_weight: float = 0.25,
    ) -> None:
        super().__init__(
            channels,
            num_classes,
            extractor=extractor,
            box_head=box_head,
            sampler=sampler,
            box_coder=box_coder,
            postprocessor=postprocessor,
            positive_iou=positive_iou,
            min_negative_iou=min_negative_iou,
            class_agnostic=class_agnostic,
            smooth_l1_beta=smooth_l1_beta,
        )
        self.auxiliary_head = (box_head or TwoFCHead)(channels, self.extractor.output_size)
        self.auxiliary_predictor = BoxPredictor(
            self.auxiliary_head.channels, num_classes, class_agnostic=class_agnostic
        )
        self.auxiliary_weight = auxiliary_weight

    def loss_terms(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, targets: Targets, image_size: Tensor
    ) -> dict[str, LossTerm]:
        """Terms `class_loss`, `box_loss`, `auxiliary_class_loss`, `auxiliary_box_loss`; arguments as of `RoIHead`.

        Raises:
            UserError: the features are no pyramid of an `AugFPN`.
        """
        laterals = getattr(features, "laterals", None)
        if laterals is None:
            raise UserError(
                "ConsistentRoIHead supervises the laterals of an AugFPN, but the network's neck shows none: "
                "set the neck to models.necks.aug_fpn.AugFPN, or roi_head to models.detection.roi.roi_head.RoIHead"
            )
        samples = self.sample(boxes, valid, targets)
        strides = self.extractor.strides
        levels = [self.supervise(x, samples, s) for x, s in zip(laterals, strides, strict=False)]
        auxiliary = [self._losses(logits, codes, samples) for logits, codes in levels]
        class_loss, box_loss = self._losses(*self(features, samples.boxes, samples.taken), samples)
        count = samples.taken.sum(1).clamp(min=1).float()
        return {
            "class_loss": LossTerm(class_loss, count, 1.0, 0.0),
            "box_loss": LossTerm(box_loss, count, 1.0, 0.0),
            "auxiliary_class_loss": LossTerm(sum(c for c, _ in auxiliary), count, self.auxiliary_weight, 0.0),
            "auxiliary_box_loss": LossTerm(sum(b for _, b in auxiliary), count, self.auxiliary_weight, 0.0),
        }

    def supervise(self, lateral: Tensor, samples: RoISamples, stride: int) -> tuple[Tensor, Tensor]:
        """Predict for the S samples from one lateral (B, C, H, W): logits (B, S, K + 1), codes (B, S, 4, R)."""
        pooled = self.extractor.pool(lateral, with_image(samples.boxes, samples.taken), stride)
        logits, codes = self.auxiliary_predictor(self.auxiliary_head(pooled))
        return spread(logits, samples.taken), spread(codes, samples.taken)

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        own = self.auxiliary_predictor.class_parameters
        return [*super().class_parameters(), *(f"auxiliary_predictor.{name}" for name in own)]

    def _losses(self, logits: Tensor, codes: Tensor, samples: RoISamples) -> tuple[Tensor, Tensor]:
        """Sums per image, (B,) and (B,)."""
        return class_losses(logits, samples.labels, samples.taken), box_losses(
            codes, samples, self.box_coder, max_positives=self.sampler.max_positives, beta=self.smooth_l1_beta
        )
