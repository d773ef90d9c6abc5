"""What every neck offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """Makes a pyramid of a backbone's features.

    A detector takes a neck as a factory that is called with the features' channels. In a configuration and on the
    command line the name of a subclass is enough, if `models.necks` has it: `--model.network.neck PAFPN`.

    Attributes:
        channels: of every level of the pyramid.
    """

    channels: int

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, in_channels[i], H_i, W_i) -> levels (B, channels, H_l, W_l), finest first."""

    def size_divisor(self, strides: Sequence[int]) -> int:
        """What height and width of an input must be multiples of, for features of these strides."""
        return max(strides)
