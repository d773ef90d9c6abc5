"""Perplexity and its companions, exact: sums of log-likelihoods and of tokens over the whole text, in float64."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metrics.exact import ExactMetric
from metrics.loss import DatasetLoss, RatioOfSums


class LanguageMetric(DatasetLoss):
    """Losses, perplexities, and the shares of right predictions.

    Perplexity is exp(total negative log-likelihood / total tokens): never a mean of perplexities or of batches' means.
    Since its size depends on how a text is cut into tokens, the same likelihood is also given per byte, per character
    and per word of the text, which compare across tokenisers. Of models of two directions `perplexity` is the geometric
    mean of both, exp(their mean loss), as ELMo's authors report it.

    Args:
        size: number of samples of the dataset, to check that all were seen; None leaves that unchecked.
        perplexities: loss term, a mean negative log-likelihood per token in nats -> what its perplexity is called.
        units: of the text that all tokens together make up: numbers of `bytes`, `characters` and `words`; empty if
            the likelihoods are not of a whole text.
    """

    def __init__(
        self, size: int | None, perplexities: Mapping[str, str], units: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(size)
        self.perplexities = perplexities
        self.units = units or {}
        self.right: dict[int, dict[str, tuple[float, float]]] = {}

    def update(
        self, index: Tensor, terms: dict[str, RatioOfSums], right: dict[str, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        """Add a batch.

        Args:
            index: (B,) dataset indices.
            terms: the loss terms, each with (B,) numerators and denominators.
            right: name -> numbers (B,) of right predictions and of all.
        """
        super().update(index, terms)
        for name, (hits, counts) in (right or {}).items():
            rows = torch.stack([hits, counts]).double().T.tolist()
            for i, row in zip(index.tolist(), rows, strict=True):
                self.samples[i][f"right/{name}"] = (row[0], row[1])

    def value(self, samples: dict[int, Any]) -> dict[str, float]:
        """The losses, and what follows from them."""
        right = {key: [] for sample in samples.values() for key in sample if key.startswith("right/")}
        for sample in samples.values():
            for key in right:
                right[key].append(sample[key])
        units = self.units if self.complete else {}  # a part's likelihood by the whole text's size would mean nothing
        losses = {i: {k: v for k, v in sample.items() if k not in right} for i, sample in samples.items()}
        values = super().value(losses)
        found: list[float] = []  # log-perplexities
        for term, name in self.perplexities.items():
            if term not in values:
                continue
            tokens = math.fsum(sample[term][1] for sample in losses.values())
            nats = values[term] / losses[next(iter(losses))][term][2] * tokens  # without the term's weight
            found.append(nats / tokens if tokens else float("nan"))
            values[name] = exponential(found[-1])
            prefix = name.removesuffix("perplexity")
            for unit in ("byte", "character"):
                if f"{unit}s" in units:
                    values[f"{prefix}bits_per_{unit}"] = nats / math.log(2) / units[f"{unit}s"]
            if "words" in units:
                values[f"{prefix}word_perplexity"] = exponential(nats / units["words"])
        if len(found) > 1:
            values["perplexity"] = exponential(math.fsum(found) / len(found))
        for key, rows in right.items():
            counts = math.fsum(count for _, count in rows)
            hits = math.fsum(hit for hit, _ in rows)
            values[key.removeprefix("right/")] = hits / counts if counts else float("nan")
        return values


class ClassificationMetric(ExactMetric):
    """What GLUE reports of its tasks: accuracy, F1, Matthews, Pearson and Spearman correlation.

    Args:
        size: see `ExactMetric`.
        classes: number of classes; 1 is regression. F1 is that of class 1 of two, else the mean over classes.
    """

    def __init__(self, size: int | None, classes: int) -> None:
        super().__init__(size)
        self.classes = classes

    def update(self, index: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: indices (B,), scores (B, K) and labels (B,)."""
        found = scores.float()[:, 0] if self.classes == 1 else scores.argmax(1)
        for i, a, b in zip(index.tolist(), found.double().tolist(), labels.double().tolist(), strict=True):
            self.samples[i] = (a, b)

    def value(self, samples: dict[int, Any]) -> dict[str, float]:
        """The metrics that suit the task."""
        found, truth = torch.tensor(list(samples.values()), dtype=torch.float64).T
        if self.classes == 1:
            return {"pearson": correlation(found, truth), "spearman": correlation(ranks(found), ranks(truth))}
        confusion = torch.zeros(self.classes, self.classes, dtype=torch.float64)
        confusion.index_put_((truth.long(), found.long()), torch.ones(len(truth), dtype=torch.float64), accumulate=True)
        hits = confusion.diagonal()
        f1 = 2 * hits / (confusion.sum(0) + confusion.sum(1))  # NaN for a class that is nowhere
        return {
            "accuracy": (hits.sum() / confusion.sum()).item(),
            "f1": (f1[1] if self.classes == 2 else f1.nanmean()).item(),
            "matthews": matthews(confusion),
        }


def exponential(value: float) -> float:
    """exp, infinite where float64 overflows."""
    return math.exp(value) if value < 709 else math.inf


def matthews(confusion: Tensor) -> float:
    """Matthews correlation of a confusion matrix (K, K) float64 (Gorodkin 2004); 0 where a factor vanishes."""
    total, hits = confusion.sum(), confusion.trace()
    truth, found = confusion.sum(1), confusion.sum(0)
    factors = (total**2 - (found**2).sum()) * (total**2 - (truth**2).sum())
    return ((hits * total - (truth * found).sum()) / factors.sqrt()).item() if factors > 0 else 0.0


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two vectors of float64; NaN where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / scale).item() if scale > 0 else float("nan")


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]
