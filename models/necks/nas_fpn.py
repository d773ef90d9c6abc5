"""NAS-FPN (Ghiasi, Lin, Le: "NAS-FPN: Learning Scalable Feature Pyramid Architecture ...", CVPR 2019, figure 6)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.necks.neck import Neck

LEVELS = 5


class Merge(NamedTuple):
    """One merging cell: features are numbered, the five inputs first, then the merges in their order."""

    level: int  # of the result, from the finest
    coarse: int  # the input of the coarser (or the same) level, which gates the other one where there is attention
    fine: int
    attention: bool
    also: int | None = None  # an input of the same level that nothing else reads, added


# The cell that the search found. The last five merges are its output, in the order that `OUTPUTS` sorts.
MERGES = (
    Merge(level=1, coarse=3, fine=1, attention=True),
    Merge(level=1, coarse=1, fine=5, attention=False),
    Merge(level=0, coarse=6, fine=0, attention=False),
    Merge(level=1, coarse=6, fine=7, attention=False),
    Merge(level=2, coarse=8, fine=7, attention=True, also=2),
    Merge(level=4, coarse=9, fine=6, attention=True, also=4),
    Merge(level=3, coarse=10, fine=9, attention=True),
)
OUTPUTS = (7, 8, 9, 11, 10)
INPUT_LEVELS = (*range(LEVELS), *(merge.level for merge in MERGES))


class NASFPNCell(nn.Module):
    """Seven merges, each followed by ReLU, 3 x 3 convolution and batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv_norm(channels, channels, 3) for _ in MERGES)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Five tensors (B, C, H_i, W_i) -> five of the same shapes, finest first."""
        nodes = list(features)
        for merge, conv in zip(MERGES, self.convs, strict=True):
            size = features[merge.level].shape[-2:]
            coarse, fine = (_resized(nodes[i], INPUT_LEVELS[i], merge.level, size) for i in (merge.coarse, merge.fine))
            if merge.attention:
                fine = fine * coarse.amax((2, 3), keepdim=True).sigmoid()
            merged = coarse + fine
            if merge.also is not None:
                merged = merged + nodes[merge.also]
            nodes.append(conv(F.relu(merged)))
        return [nodes[i] for i in OUTPUTS]


class NASFPN(Neck):
    """The cell that architecture search found, stacked.

    The backbone's features go through a 1 x 1 convolution and batch normalisation; the levels beyond them are max
    pooled from the coarsest. Attention, as in the authors' code (tensorflow/tpu, `nasfpn.py`), is the largest response
    of the coarser input over the whole map, through a sigmoid, channel by channel.

    Args:
        in_channels: widths of the backbone's features, finest first; at most five of them.
        channels: width of the pyramid.
        num_levels: must be 5: the cell was found for P3 to P7.
        stacks: number of cells.

    Attributes:
        channels: width of every output level.

    Raises:
        UserError: `num_levels` is not 5.
    """

    def __init__(
        self, in_channels: Sequence[int], *, channels: int = 256, num_levels: int = LEVELS, stacks: int = 7
    ) -> None:
        super().__init__()
        if num_levels != LEVELS or len(in_channels) > LEVELS:
            raise UserError(
                f"NASFPN was found for {LEVELS} levels, not for {max(num_levels, len(in_channels))}: set its "
                f"num_levels to {LEVELS} and let the backbone return no more features"
            )
        self.channels = channels
        self.lateral = nn.ModuleList(_conv_norm(c, channels, 1) for c in in_channels)
        self.cells = nn.Sequential(*(NASFPNCell(channels) for _ in range(stacks)))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, in_channels[i], H_i, W_i) -> 5 tensors (B, channels, H_i, W_i), finest first."""
        pyramid = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        while len(pyramid) < LEVELS:
            pyramid.append(F.max_pool2d(pyramid[-1], 2, ceil_mode=True))
        return self.cells(pyramid)


def _conv_norm(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def _resized(x: Tensor, level: int, target: int, size: Sequence[int]) -> Tensor:
    """Max pooled to a coarser level, repeated to a finer one."""
    if level < target:
        return F.max_pool2d(x, 2 ** (target - level), ceil_mode=True)
    return x if level == target else F.interpolate(x, size=tuple(size), mode="nearest")
