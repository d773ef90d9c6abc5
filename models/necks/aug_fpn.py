"""AugFPN (Guo et al.: "AugFPN: Improving Multi-scale Feature Learning for Object Detection", CVPR 2020)."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.necks.fpn import FPN


class Pyramid(list[Tensor]):
    """A pyramid, which a head reads like any other, with what it was made of.

    Attributes:
        laterals: the backbone's features in the pyramid's width before any fusion (B, C, H_l, W_l), finest first, for
            consistent supervision (`models.detection.roi.consistent_supervision`).
    """

    def __init__(self, levels: Iterable[Tensor], laterals: Sequence[Tensor]) -> None:
        super().__init__(levels)
        self.laterals = list(laterals)


class AugFPN(FPN):
    """An FPN whose coarsest level gets context that its 1 x 1 convolution would lose, and which shows its laterals.

    Args:
        in_channels: see `FPN`, like `channels`, `num_levels` and `extra`.
        ratios: see `ResidualFeatureAugmentation`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        num_levels: int = 5,
        extra: Literal["pool", "conv_c5", "conv_p5"] = "conv_c5",
        ratios: Sequence[float] = (0.1, 0.2, 0.3),
    ) -> None:
        super().__init__(in_channels, channels=channels, num_levels=num_levels, extra=extra)
        self.augmentation = ResidualFeatureAugmentation(in_channels[-1], channels, ratios)

    def forward(self, features: Sequence[Tensor]) -> Pyramid:
        """Features (B, in_channels[i], H_i, W_i) -> `num_levels` tensors (B, channels, H_i, W_i), finest first."""
        laterals = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        inner = [*laterals[:-1], laterals[-1] + self.augmentation(features[-1])]
        for i in reversed(range(len(inner) - 1)):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, inner, strict=True)]
        return Pyramid(pyramid + self.extra_levels(features[-1], pyramid[-1]), laterals)


class ResidualFeatureAugmentation(nn.Module):
    """Contexts of several sizes, pooled from a feature and mixed place by place (section 3.2).

    The feature is averaged to `ratios` of its height and width (at least one cell), whatever its shape, each result
    taken through a 1 x 1 convolution and bilinearly brought back; a small network gives each of them a weight between
    0 and 1 at every place ("adaptive spatial fusion").

    Args:
        in_channels: of the feature.
        channels: of the result.
        ratios: of the pooled sizes to the feature's.
    """

    def __init__(self, in_channels: int, channels: int, ratios: Sequence[float] = (0.1, 0.2, 0.3)) -> None:
        super().__init__()
        self.ratios = tuple(ratios)
        self.lateral = nn.ModuleList(nn.Conv2d(in_channels, channels, 1) for _ in ratios)
        self.weights = spatial_weights(channels, len(ratios))
        for conv in self.lateral:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W)."""
        size = x.shape[-2:]
        contexts = []
        for ratio, lateral in zip(self.ratios, self.lateral, strict=True):
            pooled = F.adaptive_avg_pool2d(x, [max(1, int(side * ratio)) for side in size])
            contexts.append(F.interpolate(lateral(pooled), size=size, mode="bilinear", align_corners=True))
        weights = self.weights(torch.cat(contexts, 1)).sigmoid()  # (B, ratios, H, W)
        return (weights[:, :, None] * torch.stack(contexts, 1)).sum(1)


def spatial_weights(channels: int, count: int) -> nn.Sequential:
    """The network of adaptive spatial fusion: (B, count * channels, H, W) -> logits (B, count, H, W)."""
    network = nn.Sequential(
        nn.Conv2d(count * channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, count, 3, padding=1)
    )
    for conv in (network[0], network[2]):
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)
    return network
