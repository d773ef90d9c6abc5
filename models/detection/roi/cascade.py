"""Cascade R-CNN's second stages (Cai and Vasconcelos: "Cascade R-CNN: Delving into High Quality ...", CVPR 2018)."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.detector import Detections, Targets
from models.detection.roi.box_heads import TwoFCHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.detection.roi.roi_head import BoxHead, BoxPredictor, class_scores, refine
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.roi.roi_training import RoISamples, box_losses, class_losses, sample_rois, spread
from models.detection.sampler import RandomSampler
from models.loss_term import LossTerm


class TrainedStage(NamedTuple):
    """What one stage learnt from: its samples (S per image), logits (B, S, K + 1) and codes (B, S, 4, R)."""

    samples: RoISamples
    logits: Tensor
    codes: Tensor


class StageRun(NamedTuple):
    """One stage at test time: the boxes (B, P, 4) it was given, their N pooled features, logits and codes."""

    boxes: Tensor
    pooled: Tensor
    logits: Tensor
    codes: Tensor


class Stage(nn.Module):
    """Box head and predictor of one stage.

    Args:
        box_head: turns pooled features into vectors.
        num_classes: K.
        class_agnostic: one code for all classes.
    """

    def __init__(self, box_head: nn.Module, num_classes: int, *, class_agnostic: bool) -> None:
        super().__init__()
        self.box_head = box_head
        self.predictor = BoxPredictor(box_head.channels, num_classes, class_agnostic=class_agnostic)

    def forward(self, pooled: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, ...) of the N boxes taken (B, P) -> logits (B, P, K + 1) and codes (B, P, 4, R)."""
        logits, codes = self.predictor(self.box_head(pooled))
        return spread(logits, taken), spread(codes, taken)


class ScaledGradient(torch.autograd.Function):
    """What it is given; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """The tensor itself."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of a loss."""
        return ctx.factor * gradient, None


class CascadeRoIHead(nn.Module):
    """A sequence of second stages, each trained for a higher overlap on the boxes that the one before has corrected.

    Boxes are resampled before each stage: objects are added to the corrected boxes, all are assigned anew at the
    stage's own overlap and sampled again (section 4.2). Codes are normalised anew for each stage by its coder's
    weights, the inverse standard deviations of its corrections. At test time the boxes of the last stage are scored by
    the mean of all stages' classifiers (section 4.1). The defaults are MMDetection's; detectron2 has loss weights of 1,
    `smooth_l1_beta` 0, `gradient_scale` 1/3, `resample` False and `scores` of `own_boxes`.

    Args:
        channels: of the features.
        num_classes: K.
        positive_ious: per stage the overlap from which a box is positive; their number is that of the stages.
        code_weights: per stage the factors of (x, y, w, h) codes.
        loss_weights: per stage.
        extractor: shared by all stages; None is RoIAlign on the levels of an FPN.
        box_head: of each stage, called with (channels, the extractor's output size); None is `TwoFCHead`.
        sampler: None is 512 boxes per image and stage, a quarter of them positive.
        postprocessor: None is Detectron's.
        class_agnostic: one code for all classes.
        smooth_l1_beta: where the box loss turns from a parabola to a line.
        gradient_scale: factor on the gradient that every stage sends back into the features.
        resample: False keeps the boxes of the first stage throughout and only assigns them anew.
        test_stages: how many stages are used at test time; None is all.
        scores: whose are averaged: `last_boxes` of all the used stages' classifiers on the boxes that the last one is
            given, as in the paper; `own_boxes` of all of them, each on those that it is given itself, as in MMDetection
            and detectron2; `last_stage` are those of the last one alone.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        positive_ious: Sequence[float] = (0.5, 0.6, 0.7),
        code_weights: Sequence[Sequence[float]] = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)),
        loss_weights: Sequence[float] = (1.0, 0.5, 0.25),
        extractor: RoIExtractor | None = None,
        box_head: BoxHead | None = None,
        sampler: RandomSampler | None = None,
        postprocessor: RoIPostprocessor | None = None,
        class_agnostic: bool = True,
        smooth_l1_beta: float = 1.0,
        gradient_scale: float = 1.0,
        resample: bool = True,
        test_stages: int | None = None,
        scores: Literal["last_boxes", "own_boxes", "last_stage"] = "last_boxes",
    ) -> None:
        super().__init__()
        if not len(positive_ious) == len(code_weights) == len(loss_weights):
            raise ValueError(
                f"need an overlap, code weights and a loss weight for each stage, got {len(positive_ious)}, "
                f"{len(code_weights)} and {len(loss_weights)}"
            )
        self.extractor = extractor or RoIExtractor()
        make_head = box_head or TwoFCHead
        self.stages = nn.ModuleList(
            Stage(make_head(channels, self.extractor.output_size), num_classes, class_agnostic=class_agnostic)
            for _ in positive_ious
        )
        self.coders = [BoxCoder(weights=w, y_first=False, max_log_ratio=MAX_LOG_RATIO) for w in code_weights]
        self.positive_ious = tuple(positive_ious)
        self.loss_weights = tuple(loss_weights)
        self.sampler = sampler or RandomSampler(size=512, positive_fraction=0.25)
        self.postprocessor = postprocessor or RoIPostprocessor()
        self.smooth_l1_beta = smooth_l1_beta
        self.gradient_scale = gradient_scale
        self.resample = resample
        self.test_stages = len(self.stages) if test_stages is None else test_stages
        self.scores = scores

    def loss_terms(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, targets: Targets, image_size: Tensor
    ) -> dict[str, LossTerm]:
        """Terms `stage1_class_loss`, `stage1_box_loss` and so on, each divided by the number of sampled boxes.

        Args:
            features: per level (B, C, H_l, W_l).
            boxes: (B, P, 4) XYXY proposals.
            valid: (B, P) bool, False where padded.
            targets: with at least one place per image.
            image_size: (B, 2); corrected boxes are clipped to it.
        """
        terms = {}
        stages = self.train_stages(features, boxes, valid, targets, image_size)
        for number, (stage, coder, weight) in enumerate(zip(stages, self.coders, self.loss_weights, strict=True), 1):
            samples = stage.samples
            count = samples.taken.sum(1).clamp(min=1).float()
            class_loss = class_losses(stage.logits, samples.labels, samples.taken)
            box_loss = box_losses(
                stage.codes, samples, coder, max_positives=samples.labels.shape[1], beta=self.smooth_l1_beta
            )
            terms[f"stage{number}_class_loss"] = LossTerm(class_loss, count, weight, 0.0)
            terms[f"stage{number}_box_loss"] = LossTerm(box_loss, count, weight, 0.0)
        return terms

    def train_stages(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, targets: Targets, image_size: Tensor
    ) -> Iterator[TrainedStage]:
        """Stage after stage: sample, predict, correct; arguments as of `loss_terms`.

        The samples hold the overlaps of the boxes that each stage is given: the statistics of resampling.
        """
        sampler, add_objects = self.sampler, True
        for stage, coder, positive_iou in zip(self.stages, self.coders, self.positive_ious, strict=True):
            samples = sample_rois(
                boxes,
                valid,
                targets,
                sampler,
                positive_iou=positive_iou,
                deterministic=not self.training,
                add_objects=add_objects,
            )
            pooled = self.extractor(features, samples.boxes, samples.taken)
            logits, codes = stage(ScaledGradient.apply(pooled, self.gradient_scale), samples.taken)
            yield TrainedStage(samples, logits, codes)
            boxes = refine(samples.boxes, logits, codes, coder, image_size)
            # Boxes that ended up beside the image teach nothing.
            valid = samples.taken & (boxes[..., 2:] > boxes[..., :2]).all(-1)
            if self.resample:  # objects are added afresh
                valid &= ~samples.is_object
            else:
                sampler, add_objects = RandomSampler(size=boxes.shape[1], positive_fraction=1.0), False

    def run_stages(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, image_size: Tensor
    ) -> Iterator[StageRun]:
        """The stages in use, one after the other on proposals (B, P, 4), `valid` (B, P) False where padded."""
        for stage, coder in zip(self.stages[: self.test_stages], self.coders, strict=False):
            pooled = self.extractor(features, boxes, valid)
            logits, codes = stage(pooled, valid)
            yield StageRun(boxes, pooled, logits, codes)
            boxes = refine(boxes, logits, codes, coder, image_size)

    def detect(self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, image_size: Tensor) -> Detections:
        """Detections from proposals (B, P, 4), `valid` (B, P) False where padded."""
        runs = list(self.run_stages(features, boxes, valid, image_size))
        last = runs[-1]
        logits = [last.logits] if self.scores == "last_stage" else [run.logits for run in runs]
        if self.scores == "last_boxes":
            logits[:-1] = [stage(last.pooled, valid)[0] for stage in self.stages[: len(runs) - 1]]
        scores = torch.stack([class_scores(x, valid) for x in logits]).mean(0)
        return self.postprocessor(scores, last.codes, last.boxes, self.coders[len(runs) - 1], image_size)

    def on_pooled(self, pooled: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features (N, C, S, S) -> logits (N, K + 1) and codes (N, 4, R), for each run of a stage in `detect`."""
        stages = self.stages[: self.test_stages]
        again = stages[:-1] if self.scores == "last_boxes" else []
        return [stage.predictor(stage.box_head(pooled)) for stage in [*stages, *again]]

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return [
            f"stages.{i}.predictor.{name}"
            for i, stage in enumerate(self.stages)
            for name in stage.predictor.class_parameters
        ]
