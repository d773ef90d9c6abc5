"""Feature pyramid network (Lin et al.: "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3)."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.necks.neck import Neck


class FPN(Neck):
    """Lateral 1 x 1 convolutions, a top-down path of nearest upsampling and sums, a 3 x 3 convolution per level.

    Args:
        in_channels: of the backbone's features, finest first.
        channels: of every level of the pyramid.
        num_levels: of the pyramid; the levels beyond the backbone's are made by `extra`.
        extra: `pool` subsamples the coarsest level by two (Faster R-CNN's P6, for the RPN alone); `conv_c5` is a
            strided 3 x 3 convolution on the backbone's coarsest feature, then strided convolutions on the ReLU of the
            level before (RetinaNet, section 4); `conv_p5` takes the pyramid's coarsest level in place of the
            backbone's.

    Attributes:
        channels: of every level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        num_levels: int = 5,
        extra: Literal["pool", "conv_c5", "conv_p5"] = "conv_c5",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.extra = extra
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.num_extra = num_levels - len(in_channels)
        first = in_channels[-1] if extra == "conv_c5" else channels
        self.coarser = nn.ModuleList(
            nn.Conv2d(first if i == 0 else channels, channels, 3, stride=2, padding=1)
            for i in range(0 if extra == "pool" else self.num_extra)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, in_channels[i], H_i, W_i) -> `num_levels` tensors (B, channels, H_i, W_i), finest first."""
        inner = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(inner) - 1)):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, inner, strict=True)]
        return pyramid + self.extra_levels(features[-1], pyramid[-1])

    def extra_levels(self, feature: Tensor, coarsest: Tensor) -> list[Tensor]:
        """The levels beyond the backbone's, from its coarsest `feature` or the pyramid's `coarsest` level."""
        levels: list[Tensor] = []
        if self.extra == "pool":
            for _ in range(self.num_extra):
                levels.append(F.max_pool2d(levels[-1] if levels else coarsest, kernel_size=1, stride=2))
            return levels
        x = feature if self.extra == "conv_c5" else coarsest
        for i, conv in enumerate(self.coarser):
            levels.append(conv(x if i == 0 else F.relu(levels[-1])))
        return levels
