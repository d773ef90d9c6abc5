"""DeepLabV3 (Chen et al.: "Rethinking Atrous Convolution", 2017, section 3.3): one feature at several dilations."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1 x 1, dilated 3 x 3 and the picture's average, concatenated and projected.

    Args:
        in_channels: of the feature.
        rates: of dilation; twice the paper's 6, 12, 18, for an output stride of 8.
        channels: of every branch and of the result.
    """

    def __init__(self, in_channels: int, rates: Sequence[int], channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [_conv(in_channels, channels, 1), *(_conv(in_channels, channels, 3, rate) for rate in rates)]
        )
        self.pooled = _conv(in_channels, channels, 1)
        self.project = nn.Sequential(*_conv(channels * (len(rates) + 2), channels, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, channels, h, w)."""
        average = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([*(conv(x) for conv in self.convs), average], 1))


class DeepLabHead(nn.Module):
    """ASPP, a 3 x 3 convolution, and the score.

    Args:
        in_channels: of the backbone's features, finest first; the last is used.
        num_classes: K.
        rates: see `ASPP`, like `channels`.
        channels: of all layers.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        rates: Sequence[int] = (12, 24, 36),
        channels: int = 256,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels[-1], rates, channels)
        self.conv = _conv(channels, channels, 3)
        self.score = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features -> scores (B, K, h, w) at the resolution of the last."""
        return self.score(self.conv(self.aspp(features[-1])))

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        return ["score.weight", "score.bias"]


def _conv(in_channels: int, channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
