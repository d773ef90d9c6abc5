"""Region proposal network (Ren et al.: "Faster R-CNN: Towards Real-Time Object Detection ...", NeurIPS 2015)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.boxes import take_rows
from models.detection.detector import Targets
from models.detection.low_quality_matcher import LowQualityMatcher
from models.detection.matcher import IGNORED, AnchorMatcher
from models.detection.precision import at_least_float32
from models.detection.proposals import ProposalSelector
from models.detection.sampler import RandomSampler
from models.detection.sized_anchors import SizedAnchors
from models.loss_term import LossTerm


class RPN(nn.Module):
    """Objectness and a box for every anchor, from a small convolutional head shared by all levels.

    Args:
        channels: of the features.
        anchors: None is one side per level, 32 to 512 pixels, and three ratios.
        convs: 3 x 3 convolutions before the predictors (torchvision's v2 has two).
        matcher: None is positive from an overlap of .7, negative below .3, and the best anchors of every object.
        sampler: None is 256 anchors per image, half of them positive.
        box_coder: None is unweighted (x, y, w, h).
        selector: None is Detectron's for an FPN.
        smooth_l1_beta: where the box loss turns from a parabola to a line; 0 is plain L1 as in detectron2, 1/9
            torchvision's.
        inside: anchors that reach beyond the image take no part in training (section 3.3 of the paper; later networks
            let them). Those that reach beyond the largest image of the batch are not even matched.
    """

    def __init__(
        self,
        channels: int,
        *,
        anchors: SizedAnchors | None = None,
        convs: int = 1,
        matcher: AnchorMatcher | None = None,
        sampler: RandomSampler | None = None,
        box_coder: BoxCoder | None = None,
        selector: ProposalSelector | None = None,
        smooth_l1_beta: float = 0.0,
        inside: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = anchors or SizedAnchors()
        self.matcher = matcher or LowQualityMatcher()
        self.sampler = sampler or RandomSampler(size=256, positive_fraction=0.5)
        self.box_coder = box_coder or BoxCoder(y_first=False, max_log_ratio=MAX_LOG_RATIO)
        self.selector = selector or ProposalSelector()
        self.smooth_l1_beta = smooth_l1_beta
        self.inside = inside
        per_cell = self.anchors.anchors_per_cell
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.objectness = nn.Conv2d(channels, per_cell, 1)
        self.box_codes = nn.Conv2d(channels, 4 * per_cell, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Predict for the levels that have anchors.

        Args:
            features: (B, channels, H_l, W_l), finest first; levels beyond those with anchors are left out.

        Returns:
            `objectness` per level (B, A_l), logits; `box_codes` per level (B, A_l, 4); `sizes`, the levels'
            (height, width).
        """
        features = features[: len(self.anchors.strides)]
        objectness, box_codes = [], []
        for x in features:
            for conv in self.convs:
                x = F.relu(conv(x))
            objectness.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            box_codes.append(self.box_codes(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        return {
            "objectness": objectness,
            "box_codes": box_codes,
            "sizes": [tuple(x.shape[-2:]) for x in features],
        }

    def propose(self, outputs: dict[str, Any], image_size: Tensor) -> tuple[Tensor, Tensor]:
        """Proposals (B, P, 4) and their probabilities (B, P), see `ProposalSelector`; without gradient."""
        logits = outputs["objectness"]
        anchors = self.anchors(outputs["sizes"], logits[0].device)
        return self.selector(logits, outputs["box_codes"], anchors, self.box_coder, image_size, self.training)

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """Terms `rpn_class_loss` and `rpn_box_loss`, both divided by the number of sampled anchors.

        Args:
            outputs: of `forward`.
            targets: crowds and padding are left out.
            image_size: (B, 2).
        """
        logits, codes = torch.cat(outputs["objectness"], 1), torch.cat(outputs["box_codes"], 1)
        anchors = self.anchors(outputs["sizes"], logits.device)
        boxes = targets["boxes"]
        match = self.match(anchors, targets, image_size)  # (B, A)
        index, taken, positive = self.sampler(match, deterministic=not self.training)  # (B, S)
        logits = at_least_float32(logits.gather(1, index))
        class_loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
        count = taken.sum(1).clamp(min=1).float()  # (B,)
        terms = {"rpn_class_loss": LossTerm(class_loss.where(taken, 0).sum(1), count, 1.0, 0.0)}
        # Positives come first in a sample: all others have no box to learn.
        positive = positive[:, : self.sampler.max_positives]
        index = index[:, : self.sampler.max_positives]
        objects = match.gather(1, index).clamp(min=0)
        anchors = anchors[index]
        goal = take_rows(boxes, objects).where(positive[..., None], anchors)
        goal = self.box_coder.encode(goal, anchors)
        codes = at_least_float32(take_rows(codes, index))
        box_loss = F.smooth_l1_loss(codes, goal, reduction="none", beta=self.smooth_l1_beta)
        terms["rpn_box_loss"] = LossTerm(box_loss.where(positive[..., None], 0).sum((1, 2)), count, 1.0, 0.0)
        return terms

    def match(self, anchors: Tensor, targets: Targets, image_size: Tensor) -> Tensor:
        """Index of the object of every anchor (A, 4), NEGATIVE or IGNORED: (B, A) int64."""
        valid = (targets["labels"] >= 0) & ~targets["iscrowd"]
        if not self.inside:
            return self.matcher(anchors, targets["boxes"], valid)
        # An empty anchor overlaps nothing, so that no object takes it for its best.
        within_largest = is_inside(anchors, image_size.amax(0, keepdim=True))[0]
        match = self.matcher(anchors.where(within_largest[:, None], 0), targets["boxes"], valid)
        return match.where(is_inside(anchors, image_size), IGNORED)


def is_inside(anchors: Tensor, image_size: Tensor) -> Tensor:
    """Whether anchors (A, 4) lie within images of the sizes (B, 2) -> (B, A) bool."""
    limits = image_size.flip(1)[:, None]  # (B, 1, 2): width, height
    return (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= limits).all(2)
