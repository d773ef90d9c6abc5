"""What the losses of a dense detector are divided by."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Normalisation(NamedTuple):
    """How losses per image become a `LossTerm`: numerator `loss * factor`, over `denominator` and `offset`."""

    factor: Tensor  # (B,)
    denominator: Tensor  # (B,)
    offset: float


class Normaliser(ABC):
    """What both losses of a batch are divided by."""

    @abstractmethod
    def __call__(self, count: Tensor, training: bool) -> Normalisation:
        """Positive anchors per image (B,) float32 -> factors and denominators."""


class PerBatch(Normaliser):
    """By the positive anchors of the whole batch, as the papers of SSD, RetinaNet and EfficientDet say.

    Args:
        offset: added to their number (EfficientDet's 1). With 0 a batch without any positive anchor is divided by 1 in
            training; in an evaluation, where the whole dataset is one batch, nothing is added.
    """

    def __init__(self, *, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self, count: Tensor, training: bool) -> Normalisation:
        """See `Normaliser`."""
        denominator = count
        if training and self.offset == 0:
            denominator = count + (count.sum() == 0) / len(count)
        return Normalisation(torch.ones_like(count), denominator, self.offset)


class PerImage(Normaliser):
    """By the positive anchors of each image, at least one, and then by the number of images (torchvision)."""

    def __call__(self, count: Tensor, training: bool) -> Normalisation:
        """See `Normaliser`."""
        return Normalisation(1 / count.clamp(min=1), torch.ones_like(count), 0.0)


class MovingAverage(nn.Module, Normaliser):
    """By a moving average of the positive anchors of batches, against noise from few objects (detectron2).

    In an evaluation by the positive anchors themselves.

    Args:
        initial: the average at the start.
        momentum: its weight against a new batch.
    """

    def __init__(self, *, initial: float = 100.0, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(float(initial)))

    def forward(self, count: Tensor, training: bool) -> Normalisation:
        """See `Normaliser`; in training the average moves on."""
        if not training:
            return Normalisation(torch.ones_like(count), count, 0.0)
        self.average.lerp_(count.sum().clamp(min=1).to(self.average), 1 - self.momentum)
        return Normalisation(torch.ones_like(count), (self.average / len(count)).expand_as(count).clone(), 0.0)
