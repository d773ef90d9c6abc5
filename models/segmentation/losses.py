"""Losses on pixels.

All leave out pixels labelled 255 and return sums per image, so that how a dataset is divided into batches does not
change the value.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = 255


class PixelLoss(nn.Module, ABC):
    """Base class.

    Args:
        weight: factor of the loss in the total.

    Attributes:
        name: under which it is logged.
    """

    name: str

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The loss as a ratio of sums.

        Args:
            logits: (B, K, H, W) float32.
            mask: (B, H, W) int64, 0..K-1 or 255.

        Returns:
            Numerators and denominators, (B,) float32 each; the loss is the ratio of their sums.
        """


class CrossEntropy(PixelLoss):
    """Softmax cross-entropy.

    Args:
        reduction: `mean` over the labelled pixels of the batch; `sum` over the labelled pixels of an image, averaged
            over images, as Caffe's unnormalised loss that FCN was trained with (learning rates around 1e-10).
        class_weights: K factors, or None. Under `mean` the weights of the labelled pixels are what is divided by.
        weight: see `PixelLoss`.
    """

    name = "cross_entropy"

    def __init__(
        self,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        class_weights: Sequence[float] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        self.reduction = reduction
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        losses = F.cross_entropy(logits, mask, self.class_weights, ignore_index=IGNORED, reduction="none")
        total = losses.sum((1, 2))
        if self.reduction == "sum":
            return total, torch.ones_like(total)
        labelled = mask != IGNORED
        if self.class_weights is None:
            return total, labelled.sum((1, 2)).float()
        return total, (self.class_weights[mask.where(labelled, 0)] * labelled).sum((1, 2))


class OhemCrossEntropy(PixelLoss):
    """Cross-entropy over the hard pixels of each image (online hard example mining, Shrivastava et al. 2016).

    Hard is a pixel whose true class has a probability below `threshold`; at least the `min_kept` hardest count.

    Args:
        threshold: on the probability.
        min_kept: share of an image's labelled pixels that count at least.
        weight: see `PixelLoss`.
    """

    name = "ohem_cross_entropy"

    def __init__(self, *, threshold: float = 0.7, min_kept: float = 1 / 16, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.threshold = threshold
        self.min_kept = min_kept

    def forward(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        losses = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="none").flatten(1)  # (B, P)
        labelled = (mask != IGNORED).flatten(1)
        with torch.no_grad():
            hardness = losses.where(labelled, -1.0)
            kept = (self.min_kept * labelled.sum(1)).long().clamp(min=1)  # (B,)
            limit = hardness.sort(1, descending=True).values.gather(1, kept[:, None] - 1)  # the last that is kept
            threshold = -torch.log(torch.tensor(self.threshold, device=losses.device))
            chosen = labelled & (hardness >= limit.clamp(max=threshold))
        return (losses * chosen).sum(1), chosen.sum(1).float()


class FocalLoss(PixelLoss):
    """Softmax focal loss (Lin et al. 2017, section 3): (1 - p)^gamma times the cross-entropy, over labelled pixels.

    Args:
        gamma: 0 is the cross-entropy.
        weight: see `PixelLoss`.
    """

    name = "focal_loss"

    def __init__(self, *, gamma: float = 2.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.gamma = gamma

    def forward(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        losses = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="none")
        modulated = (1 - torch.exp(-losses)).clamp(min=0) ** self.gamma * losses
        return modulated.sum((1, 2)), (mask != IGNORED).sum((1, 2)).float()


class DiceLoss(PixelLoss):
    """1 - Dice, averaged over the classes that an image shows (Milletari et al. 2016, with softmax probabilities).

    Args:
        smooth: added to numerator and denominator.
        weight: see `PixelLoss`.
    """

    name = "dice_loss"

    def __init__(self, *, smooth: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.smooth = smooth

    def forward(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        probabilities, truth = _by_class(logits, mask)
        overlap = (probabilities * truth).sum(2)
        dice = (2 * overlap + self.smooth) / (probabilities.sum(2) + truth.sum(2) + self.smooth)  # (B, K)
        return _mean_over_present(1 - dice, truth)


class LovaszSoftmax(PixelLoss):
    """The convex surrogate of 1 - IoU per image, over the classes it shows (Berman et al., CVPR 2018)."""

    name = "lovasz_softmax"

    def forward(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        probabilities, truth = _by_class(logits, mask)  # (B, K, P)
        # Unlabelled pixels have no error and no truth: they come last and add nothing.
        labelled = (mask != IGNORED).flatten(1)[:, None]
        errors, order = ((truth - probabilities).abs() * labelled).sort(2, descending=True)
        truth_sorted = truth.gather(2, order)
        total = truth.sum(2, keepdim=True)
        intersection = total - truth_sorted.cumsum(2)
        union = total + (1 - truth_sorted).cumsum(2)
        jaccard = 1 - intersection / union
        gradient = torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], 2)
        return _mean_over_present((errors * gradient).sum(2), truth)


def _by_class(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth (B, K, H * W) float32, both zero on unlabelled pixels."""
    labelled = mask != IGNORED
    truth = F.one_hot(mask.where(labelled, 0), logits.shape[1]).permute(0, 3, 1, 2) * labelled[:, None]
    return (logits.softmax(1) * labelled[:, None]).flatten(2), truth.flatten(2).float()


def _mean_over_present(losses: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Average (B, K) over the classes that occur in (B, K, P); an image without a label does not count."""
    present = truth.sum(2) > 0
    count = present.sum(1)
    return (losses * present).sum(1) / count.clamp(min=1), (count > 0).float()
