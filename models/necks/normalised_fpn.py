"""FPN with batch normalisation after every convolution."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from models.necks.fpn import FPN


class NormalisedFPN(FPN):
    """`FPN` whose lateral and output convolutions have a batch normalisation in the place of a bias.

    (torchvision's second versions, after Li et al., "Benchmarking Detection Transfer Learning with Vision
    Transformers", 2021.)

    Args:
        in_channels: see `FPN`, like the other arguments.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        num_levels: int = 5,
        extra: Literal["pool", "conv_c5", "conv_p5"] = "pool",
    ) -> None:
        super().__init__(in_channels, channels=channels, num_levels=num_levels, extra=extra)
        for convs in (self.lateral, self.output):
            for i, conv in enumerate(convs):
                conv.bias = None
                convs[i] = nn.Sequential(conv, nn.BatchNorm2d(channels))
