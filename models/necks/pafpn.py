"""Path aggregation network (Liu et al.: "Path Aggregation Network for Instance Segmentation", CVPR 2018, 3.1)."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.necks.fpn import FPN


class PAFPN(FPN):
    """An FPN and a second, bottom-up path, on which the fine levels' exact places reach the coarse levels quickly.

    The finest level stays as it is; each further one is a 3 x 3 convolution of its FPN level plus the strided 3 x 3
    convolution of the new level before it, every convolution of the path followed by a ReLU. The path runs over the
    backbone's levels; the coarser ones are made from its end as `extra` says. (The paper's adaptive feature pooling is
    part of the second stage: `models.detection.roi.roi_extractor.AllLevelsRoIExtractor`.)

    Args:
        in_channels: see `FPN`, like the other arguments.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        num_levels: int = 5,
        extra: Literal["pool", "conv_c5", "conv_p5"] = "conv_c5",
    ) -> None:
        super().__init__(in_channels, channels=channels, num_levels=num_levels, extra=extra)
        steps = range(len(in_channels) - 1)
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in steps)
        self.fuse = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in steps)
        for conv in (*self.down, *self.fuse):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, in_channels[i], H_i, W_i) -> `num_levels` tensors (B, channels, H_i, W_i), finest first."""
        inner = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(inner) - 1)):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, inner, strict=True)]
        for i, (down, fuse) in enumerate(zip(self.down, self.fuse, strict=True), 1):
            pyramid[i] = F.relu(fuse(pyramid[i] + F.relu(down(pyramid[i - 1]))))
        return pyramid + self.extra_levels(features[-1], pyramid[-1])
