"""Small layers that backbones, necks and heads share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, in place where no gradient is recorded.

    Where one is, writing in place would only make autograd keep a copy of the input. `x` must belong to the caller.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


def halve(x: Tensor) -> Tensor:
    """Max-pool 3 x 3 with stride 2 and TensorFlow's SAME padding: (B, C, 2h, 2w) -> (B, C, h, w).

    For even sizes SAME pads one row and one column at the bottom and right only, which is what `ceil_mode` does
    without a copy of the input.
    """
    return F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as TensorFlow's EfficientNets have it: decay 0.99, which torch calls momentum 0.01."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SeparableConv(nn.Module):
    """Depthwise 3 x 3 without a bias, then pointwise 1 x 1 with one: (B, C, H, W) -> (B, `out_channels`, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve in space, then across channels."""
        return self.pointwise(self.depthwise(x))


class Projection(nn.Module):
    """Pointwise convolution (with its redundant bias) and batch normalisation: changes the number of channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.bn = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, `in_channels`, H, W) -> (B, `out_channels`, H, W)."""
        return self.bn(self.conv(x))


def tensorflow_fans(weight: Tensor) -> tuple[int, int]:
    """Fan in and fan out as TensorFlow counts them for a kernel (out, in / groups, kh, kw).

    A depthwise kernel is laid out (kh, kw, channels, 1) there, so that its fan in counts all channels.
    """
    outputs, inputs, height, width = weight.shape
    if inputs == 1 and outputs > 1:  # depthwise
        inputs, outputs = outputs, 1
    return inputs * height * width, outputs * height * width


def variance_scaling_(weight: Tensor) -> Tensor:
    """Fill with `tf.initializers.variance_scaling()`: normal cut at two deviations, variance 1 / fan in."""
    std = tensorflow_fans(weight)[0] ** -0.5 / 0.87962566103423978  # the cut takes this factor off the deviation
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def glorot_uniform_(weight: Tensor) -> Tensor:
    """Fill with TensorFlow's default initialiser: uniform with variance 2 / (fan in + fan out)."""
    limit = (6 / sum(tensorflow_fans(weight))) ** 0.5
    return nn.init.uniform_(weight, -limit, limit)
