"""Bidirectional feature pyramid (Tan, Pang, Le: "EfficientDet", CVPR 2020, section 3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Projection, SeparableConv, batch_norm, glorot_uniform_, halve, silu
from models.necks.neck import Neck


class Node(NamedTuple):
    """One fusion: `level` counts from the finest; `inputs` number the cell's inputs first, then its nodes."""

    level: int
    inputs: tuple[int, ...]


def bifpn_nodes(num_levels: int) -> list[Node]:
    """The nodes of one cell in order: top-down over all but the coarsest level, then bottom-up over all but the finest.

    A bottom-up node also sees its level's input again (figure 2d), where the level had a top-down node.
    """
    features = [[level] for level in range(num_levels)]  # what there is of each level so far
    nodes: list[Node] = []

    def add(level: int, inputs: list[int]) -> None:
        features[level].append(num_levels + len(nodes))
        nodes.append(Node(level, tuple(inputs)))

    for level in reversed(range(num_levels - 1)):
        add(level, [features[level][-1], features[level + 1][-1]])
    for level in range(1, num_levels):
        add(level, [*features[level], features[level - 1][-1]])
    return nodes


class FastFusion(nn.Module):
    """Weighted sum of equally shaped tensors, each by relu(w_i) / (sum_j relu(w_j) + 1e-4) (section 3.3)."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Sum tensors of one shape and type into a tensor of that shape and type."""
        weights = F.relu(self.weights)
        factors = (weights / (weights.sum() + 1e-4)).to(inputs[0].dtype).unbind()
        total = inputs[0] * factors[0]
        for x, factor in zip(inputs[1:], factors[1:], strict=True):
            total = torch.addcmul(total, x, factor)
        return total


class PlainFusion(nn.Module):
    """Unweighted sum, which the authors took for the large models' stable training."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Sum tensors of one shape."""
        total = inputs[0] + inputs[1]
        for x in inputs[2:]:
            total = total + x
        return total


class FusionNode(nn.Module):
    """Resample the inputs to one size, fuse them, then SiLU, separable convolution, batch normalisation."""

    def __init__(self, node: Node, levels: Sequence[int], in_channels: Sequence[int], channels: int, weighted: bool):
        super().__init__()
        self.inputs = node.inputs
        self.steps = [levels[i] - node.level for i in node.inputs]  # 1: from coarser, -1: from finer
        self.projections = nn.ModuleDict(
            {str(i): Projection(in_channels[i], channels) for i in node.inputs if in_channels[i] != channels}
        )
        self.fusion = FastFusion(len(node.inputs)) if weighted else PlainFusion()
        self.conv = SeparableConv(channels, channels)
        self.bn = batch_norm(channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """All features of the cell so far, each (B, in_channels[i], h_i, w_i) -> (B, channels, h, w)."""
        resampled = []
        for i, step in zip(self.inputs, self.steps, strict=True):
            x = features[i]
            if str(i) in self.projections:
                x = self.projections[str(i)](x)
            if step < 0:
                x = halve(x)
            elif step > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            resampled.append(x)
        return self.bn(self.conv(silu(self.fusion(resampled))))


class BiFPNCell(nn.Module):
    """One bidirectional pass over the pyramid."""

    def __init__(self, in_channels: Sequence[int], channels: int, weighted: bool) -> None:
        super().__init__()
        nodes = bifpn_nodes(len(in_channels))
        levels = [*range(len(in_channels)), *(node.level for node in nodes)]
        widths = [*in_channels, *(channels for _ in nodes)]
        self.nodes = nn.ModuleList(FusionNode(node, levels, widths, channels, weighted) for node in nodes)
        self.num_levels = len(in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Pyramid in, pyramid out, finest level first."""
        features = list(features)
        for node in self.nodes:
            features.append(node(features))
        return features[-self.num_levels :]  # the finest top-down node and the bottom-up nodes


class BiFPN(Neck):
    """Extra coarse levels, then repeated bidirectional cells.

    The first level beyond the backbone is its coarsest feature through a 1 x 1 convolution and BN, max-pooled; each
    further one is the previous one max-pooled. A feature of another width is projected anew for every node that reads
    it, so the top-down and the bottom-up node of P4 and P5 have weights of their own in the first cell.

    Args:
        in_channels: widths of the backbone's features, finest first.
        channels: width of the pyramid.
        num_levels: levels returned (5: P3 to P7).
        repeats: number of cells.
        weighted: learned fast normalised fusion; False adds the inputs as they are (D6, D7, D7x).

    Attributes:
        channels: width of every output level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 64,
        num_levels: int = 5,
        repeats: int = 3,
        weighted: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_extra = num_levels - len(in_channels)
        self.extra = Projection(in_channels[-1], channels)
        widths = [*in_channels, *[channels] * self.num_extra]
        cells = []
        for _ in range(repeats):
            cells.append(BiFPNCell(widths, channels, weighted))
            widths = [channels] * num_levels
        self.cells = nn.ModuleList(cells)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                glorot_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone features (B, in_channels[i], h_i, w_i) -> `num_levels` maps (B, channels, h_i, w_i).

        Every height and width must be even down to the last level but one.
        """
        pyramid = list(features)
        pyramid.append(halve(self.extra(pyramid[-1])))
        while len(pyramid) < len(features) + self.num_extra:
            pyramid.append(halve(pyramid[-1]))
        for cell in self.cells:
            pyramid = cell(pyramid)
        return pyramid

    def size_divisor(self, strides: Sequence[int]) -> int:
        """Every level is exactly half of the one before."""
        return max(strides) * 2**self.num_extra
