"""FCN's skips for any backbone: coarse features say what, fine ones where (Long, Shelhamer, Darrell, section 4.2)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SkipHead(nn.Module):
    """Every feature is projected to the same width and added to the upsampled sum of the coarser ones; then the score.

    FCN adds scores; here features are added and scored once, as in panoptic feature pyramids (Kirillov et al., CVPR
    2019, section 3), because a network that is trained at once learns better from them.

    Args:
        in_channels: of the backbone's features, finest first.
        num_classes: K.
        channels: of the sum.
        dropout: before the score.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList([_conv(width, channels, 1) for width in in_channels])
        self.conv = _conv(channels, channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features -> scores (B, K, h, w) at the resolution of the finest."""
        *finer, total = (project(feature) for project, feature in zip(self.project, features, strict=True))
        for feature in reversed(finer):
            total = feature + F.interpolate(total, feature.shape[-2:], mode="bilinear", align_corners=False)
        return self.score(self.dropout(self.conv(total)))

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        return ["score.weight", "score.bias"]


def _conv(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
