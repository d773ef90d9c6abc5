"""The second stage of a two-stage detector: classify proposals and correct their boxes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.boxes import clip_boxes
from models.detection.detector import Detections, Targets
from models.detection.precision import at_least_float32
from models.detection.roi.box_heads import TwoFCHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.roi.roi_training import RoISamples, box_losses, class_losses, own_codes, sample_rois, spread
from models.detection.sampler import RandomSampler
from models.loss_term import LossTerm

BoxHead = Callable[[int, int], nn.Module]


class ClassPredictor(nn.Module):
    """Classes and the background from a vector.

    The background has a layer of its own, so that the rows of a class are found as in any other predictor when the
    number of classes changes.

    Args:
        channels: D of the vector.
        num_classes: K.

    Attributes:
        class_parameters: names of the parameters that a change of classes replaces.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(channels, num_classes)
        self.background = nn.Linear(channels, 1)
        for layer in (self.classes, self.background):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.class_parameters = ["classes.weight", "classes.bias"]

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K + 1), the background last."""
        return torch.cat([self.classes(x), self.background(x)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """As `logits`."""
        return self.logits(x)


class BoxPredictor(ClassPredictor):
    """Classes, the background and the codes of a box from a vector.

    Rows of the codes are ordered by coordinate, then by class.

    Args:
        channels: D of the vector.
        num_classes: K.
        class_agnostic: one code for all classes.
    """

    def __init__(self, channels: int, num_classes: int, *, class_agnostic: bool = False) -> None:
        super().__init__(channels, num_classes)
        self.box_codes = nn.Linear(channels, 4 if class_agnostic else 4 * num_classes)
        nn.init.normal_(self.box_codes.weight, std=0.001)
        nn.init.zeros_(self.box_codes.bias)
        if not class_agnostic:
            self.class_parameters += ["box_codes.weight", "box_codes.bias"]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logits (N, K + 1) and codes (N, 4, R), R = K or 1."""
        return self.logits(x), self.box_codes(x).unflatten(1, (4, -1))


class RoIHead(nn.Module):
    """Faster R-CNN's second stage: pool, box head, softmax over the classes and the background, codes per class.

    Args:
        channels: of the features.
        num_classes: K.
        extractor: None is RoIAlign on the levels of an FPN.
        box_head: called with (channels, the extractor's output size); None is `TwoFCHead`.
        sampler: None is 512 proposals per image, a quarter of them positive.
        box_coder: None has the weights (10, 10, 5, 5).
        postprocessor: None is Detectron's.
        positive_iou: a proposal that overlaps an object as much is positive.
        min_negative_iou: a proposal that overlaps all objects less takes no part (Fast R-CNN 0.1).
        class_agnostic: one code for all classes.
        smooth_l1_beta: see `RPN`.
        iterations: at test time the boxes go through the same head so often ("iterative box regression", Cascade
            R-CNN, section 3.2).
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
        iterations: int = 1,
    ) -> None:
        super().__init__()
        self.extractor = extractor or RoIExtractor()
        self.box_head = (box_head or TwoFCHead)(channels, self.extractor.output_size)
        self.predictor = BoxPredictor(self.box_head.channels, num_classes, class_agnostic=class_agnostic)
        self.sampler = sampler or RandomSampler(size=512, positive_fraction=0.25)
        self.box_coder = box_coder or BoxCoder(
            weights=(10.0, 10.0, 5.0, 5.0), y_first=False, max_log_ratio=MAX_LOG_RATIO
        )
        self.postprocessor = postprocessor or RoIPostprocessor()
        self.positive_iou = positive_iou
        self.min_negative_iou = min_negative_iou
        self.smooth_l1_beta = smooth_l1_beta
        self.iterations = iterations

    def forward(self, features: Sequence[Tensor], boxes: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Predict for the boxes (B, P, 4) that are `taken` (B, P); the others get zeros.

        Padding goes through no layer: a batch normalisation would count it.

        Returns:
            Logits (B, P, K + 1), the background last, and codes (B, P, 4, R).
        """
        logits, codes = self.on_pooled(self.extractor(features, boxes, taken))
        return spread(logits, taken), spread(codes, taken)

    def on_pooled(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C, S, S) -> logits (N, K + 1) and codes (N, 4, R)."""
        return self.predictor(self.box_head(pooled))

    def sample(self, boxes: Tensor, valid: Tensor, targets: Targets) -> RoISamples:
        """The proposals (B, P, 4) to train with; at random in training, else in a fixed order."""
        return sample_rois(
            boxes,
            valid,
            targets,
            self.sampler,
            positive_iou=self.positive_iou,
            min_negative_iou=self.min_negative_iou,
            deterministic=not self.training,
        )

    def loss_terms(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, targets: Targets, image_size: Tensor
    ) -> dict[str, LossTerm]:
        """Terms `class_loss` and `box_loss`, both divided by the number of sampled proposals.

        Args:
            features: per level (B, C, H_l, W_l).
            boxes: (B, P, 4) XYXY proposals.
            valid: (B, P) bool, False where padded.
            targets: with at least one place per image.
            image_size: (B, 2).
        """
        samples = self.sample(boxes, valid, targets)
        logits, codes = self(features, samples.boxes, samples.taken)
        count = samples.taken.sum(1).clamp(min=1).float()
        class_loss = class_losses(logits, samples.labels, samples.taken)
        box_loss = box_losses(
            codes, samples, self.box_coder, max_positives=self.sampler.max_positives, beta=self.smooth_l1_beta
        )
        return {
            "class_loss": LossTerm(class_loss, count, 1.0, 0.0),
            "box_loss": LossTerm(box_loss, count, 1.0, 0.0),
        }

    def detect(self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, image_size: Tensor) -> Detections:
        """Detections from proposals (B, P, 4), `valid` (B, P) False where padded."""
        logits, codes = self(features, boxes, valid)
        for _ in range(self.iterations - 1):
            boxes = refine(boxes, logits, codes, self.box_coder, image_size)
            logits, codes = self(features, boxes, valid)
        return self.postprocessor(class_scores(logits, valid), codes, boxes, self.box_coder, image_size)

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return [f"predictor.{name}" for name in self.predictor.class_parameters]


def class_scores(logits: Tensor, valid: Tensor) -> Tensor:
    """Logits (B, P, K + 1) -> probabilities of the classes (B, P, K) float32, 0 where not `valid` (B, P)."""
    return at_least_float32(logits).softmax(-1)[..., :-1].where(valid[..., None], 0)


@torch.no_grad()
def refine(boxes: Tensor, logits: Tensor, codes: Tensor, box_coder: BoxCoder, image_size: Tensor) -> Tensor:
    """Boxes (B, P, 4) moved by the codes (B, P, 4, R) of their likeliest class, clipped to the image."""
    labels = logits[..., :-1].argmax(-1)
    return clip_boxes(box_coder.decode(at_least_float32(own_codes(codes, labels)), boxes), image_size)
