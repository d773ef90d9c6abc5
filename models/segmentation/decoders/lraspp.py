"""Lite reduced atrous spatial pyramid pooling (Howard et al.: "Searching for MobileNetV3", 2019, section 6.4)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LRASPPHead(nn.Module):
    """The coarse feature, gated by the picture's average, plus a score of the fine one.

    Args:
        in_channels: of the backbone's features, finest first; the first and the last are used.
        num_classes: K.
        channels: between.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int = 128) -> None:
        super().__init__()
        high = in_channels[-1]
        self.conv = nn.Sequential(
            nn.Conv2d(high, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.gate = nn.Conv2d(high, channels, 1, bias=False)
        self.score_low = nn.Conv2d(in_channels[0], num_classes, 1)
        self.score_high = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features -> scores (B, K, h, w) at the resolution of the first."""
        low, high = features[0], features[-1]
        x = self.conv(high) * self.gate(high.mean((2, 3), keepdim=True)).sigmoid()
        x = F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=False)
        return self.score_low(low) + self.score_high(x)

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        return [f"{part}.{kind}" for part in ("score_low", "score_high") for kind in ("weight", "bias")]
