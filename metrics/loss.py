"""The loss of a dataset: one number, whatever the batch size and the number of processes."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from metrics.exact import ExactMetric


class RatioOfSums(Protocol):
    """A loss term whose value over any set of images is weight * sum(numerator) / (sum(denominator) + offset)."""

    numerator: Tensor  # (B,)
    denominator: Tensor  # (B,)
    weight: float
    offset: float


class DatasetLoss(ExactMetric):
    """Loss terms over a dataset, from numerators and denominators per image.

    Args:
        size: number of samples of the dataset, to check that all were seen; None leaves that unchecked.
    """

    def __init__(self, size: int | None = None) -> None:
        super().__init__(size)

    def update(self, index: Tensor, terms: dict[str, RatioOfSums]) -> None:
        """Add a batch.

        Args:
            index: (B,) dataset indices.
            terms: the loss terms, each with (B,) numerators and denominators.
        """
        # One transfer from the device: (2 * terms, B)
        columns = [column.detach() for term in terms.values() for column in (term.numerator, term.denominator)]
        rows = torch.stack(columns).double().T.tolist() if columns else [[]] * len(index)
        for i, row in zip(index.tolist(), rows, strict=True):
            self.samples[i] = {
                name: (row[2 * t], row[2 * t + 1], float(term.weight), float(term.offset))
                for t, (name, term) in enumerate(terms.items())
            }

    def value(self, samples: dict[int, Any]) -> dict[str, float]:
        """Each term, and their sum as `loss`; the sums are correctly rounded, whatever their order."""
        if not samples:
            return {"loss": float("nan")}
        values = {}
        for name, (_, _, weight, offset) in next(iter(samples.values())).items():
            numerator = math.fsum(sample[name][0] for sample in samples.values())
            denominator = math.fsum(sample[name][1] for sample in samples.values()) + offset
            values[name] = weight * numerator / denominator if denominator else float("nan")
        return {"loss": math.fsum(values.values()), **values}
