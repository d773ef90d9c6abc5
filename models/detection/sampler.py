"""Choose the few anchors or proposals of an image that the loss of a two-stage detector looks at."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.detection.matcher import NEGATIVE

# Multiples of it, modulo 2^32, follow one another in no visible order and yet leave no gaps (Knuth, TAOCP 3, 6.4).
GOLDEN = 2_654_435_761


class Sample(NamedTuple):
    """Places chosen per image: positives first, then negatives, then padding.

    Attributes:
        index: (B, S) int64, into the candidates; 0 where padded.
        taken: (B, S) bool, False where padded.
        positive: (B, S) bool, True where the place holds a positive.
    """

    index: Tensor
    taken: Tensor
    positive: Tensor


class RandomSampler:
    """Up to a fraction of positives, filled up with negatives (Girshick, Fast R-CNN, section 2.3).

    Random numbers come from torch's global generator, whose state is part of a checkpoint. Where a result must not
    depend on chance (in a validation), candidates are taken in a fixed order that is spread evenly over all places.

    Args:
        size: candidates per image; 256 for an RPN, 512 for the RoIs of detectors with an FPN.
        positive_fraction: of `size`; 0.5 for an RPN, 0.25 for RoIs.
    """

    def __init__(self, *, size: int, positive_fraction: float) -> None:
        self.size = size
        self.max_positives = int(size * positive_fraction)

    @torch.no_grad()
    def __call__(self, labels: Tensor, *, deterministic: bool = False) -> Sample:
        """Sample all images of a batch at once.

        Args:
            labels: (B, A) int64: 0 and above is a positive, NEGATIVE a negative, anything else is never taken.
            deterministic: in the fixed order instead of at random.

        Returns:
            A sample of S = min(size, A) places, as wide for all images.
        """
        batch, count = labels.shape
        size = min(self.size, count)
        if deterministic:
            order = torch.arange(count, device=labels.device).mul_(GOLDEN).remainder_(2**32).expand(batch, -1)
        else:
            order = torch.randint(2**32, labels.shape, device=labels.device)
        positives, num_positives = _first(labels >= 0, order, min(self.max_positives, count))
        negatives, num_negatives = _first(labels == NEGATIVE, order, size)
        place = torch.arange(size, device=labels.device).expand(batch, -1)
        positive = place < num_positives
        taken = place < num_positives + num_negatives
        # Place p holds positive number p, or negative number p - num_positives.
        index = negatives.gather(1, (place - num_positives).clamp(min=0))
        if positives.shape[1]:
            index = positives.gather(1, place.clamp(max=positives.shape[1] - 1)).where(positive, index)
        return Sample(index.where(taken, 0), taken, positive & taken)


def _first(mask: Tensor, order: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Indices (B, limit) of the True places of (B, A) that come first in `order`, and how many there are (B, 1)."""
    index = order.where(mask, 2**32).topk(limit, largest=False, sorted=True).indices
    return index, mask.sum(1, keepdim=True).clamp(max=limit)
