"""Losses whose value over a dataset does not depend on how it was batched."""

from typing import NamedTuple

from torch import Tensor


class LossTerm(NamedTuple):
    """A loss as a ratio of sums over samples, so that its value over a dataset does not depend on how it was batched.

    Over any set of samples the value is `weight * sum(numerator) / (sum(denominator) + offset)`.

    Attributes:
        numerator: (B,) float32, one number per sample; carries the gradient.
        denominator: (B,) float32, one number per sample.
        weight: factor of the term in the total loss.
        offset: added once to the sum of the denominators.
    """

    numerator: Tensor
    denominator: Tensor
    weight: float
    offset: float

    def value(self) -> Tensor:
        """The term over the samples at hand, a scalar."""
        return self.weight * self.numerator.sum() / (self.denominator.sum() + self.offset)
