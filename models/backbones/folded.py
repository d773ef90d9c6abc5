"""Residual blocks with frozen batch normalisation, run as convolutions alone."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(conv(x))`; where the norm is frozen, with its scale in the kernels and its shift as the bias.

    The same but for rounding, and the gradients, too. It spares two passes through the memory of the feature map, which
    is most of what a GPU does between convolutions, for one through that of the kernels; so not where these are larger.
    """
    plain = type(conv) is nn.Conv2d and conv.bias is None and isinstance(norm, FrozenBatchNorm2d)
    if not plain or x.numel() < conv.weight.numel():
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, by way of `conv_norm` where it is one of torchvision's residual blocks."""
    if type(block) not in (BasicBlock, Bottleneck):
        return block(x)
    shortcut = x if block.downsample is None else conv_norm(*block.downsample, x)
    x = F.relu(conv_norm(block.conv1, block.bn1, x), inplace=True)
    x = conv_norm(block.conv2, block.bn2, x)
    if type(block) is Bottleneck:
        x = conv_norm(block.conv3, block.bn3, F.relu(x, inplace=True))
    return F.relu(x.add_(shortcut), inplace=True)
