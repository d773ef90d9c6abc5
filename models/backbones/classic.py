"""The image classifiers before ResNet as a detector's backbone: AlexNet, CaffeNet, ZF-5 and VGG16.

Everything up to the last convolution, conv5 (conv5_3 in VGG16), whose features have a stride of 16 pixels. The pooling
behind it, pool5, is where detectors differ: R-CNN keeps it, SPPNet and Fast R-CNN put theirs in its place.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from errors import UserError


class Conv(NamedTuple):
    """A convolution and a ReLU."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


class Pool(NamedTuple):
    """Maximum over a window."""

    kernel: int
    stride: int
    padding: int = 0


class Normalise(NamedTuple):
    """Local response normalisation across channels."""

    size: int
    alpha: float


Layer = Conv | Pool | Normalise


class LocalNormalisation(nn.Module):
    """Local response normalisation across channels, x / (1 + alpha mean(x^2))^.75, the mean over neighbouring channels.

    The values of `torch.nn.LocalResponseNorm` with its other defaults, in less than half the time on a CPU: the sum
    over neighbours is a 1 x 1 convolution, and two square roots stand for the power.

    Args:
        size: channels that the mean is over, an odd number; beyond the first and the last are zeros.
        alpha: weight of the mean.
    """

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        channel = torch.arange(x.shape[1], device=x.device)
        near = ((channel[:, None] - channel).abs() <= self.size // 2).to(x.dtype)
        root = (1 + F.conv2d(x * x, self.alpha / self.size * near[:, :, None, None])).sqrt()
        return x / (root * root.sqrt())


class ClassicBackbone(nn.Module):
    """Base class; a network lists its layers.

    Args:
        width: factor on all channels; 1 is the published network, less is for small machines.
        frozen_convs: how many convolutions, from the first, are not trained.
        pretrained: load torchvision's ImageNet weights (downloaded once).

    Attributes:
        channels: of the features, in a list of one.
        strides: likewise, in pixels.
        offset: where the centre of the first cell lies, in pixels from the centre of the first pixel.
        pool5: the pooling behind the last convolution; not applied by `forward`.

    Raises:
        UserError: there are no weights of this network, or they are of another width.
    """

    LAYERS: ClassVar[tuple[Layer, ...]]
    POOL5: ClassVar[Pool]
    WEIGHTS: ClassVar[str | None] = None  # torchvision's name of the network

    def __init__(self, *, width: float = 1.0, frozen_convs: int = 0, pretrained: bool = False) -> None:
        super().__init__()
        if pretrained and (self.WEIGHTS is None or width != 1):
            raise UserError(
                f"there are no pretrained weights of {type(self).__name__} at width {width:g}: set pretrained to "
                "false, or take AlexNet or VGG16 at width 1"
            )
        layers: list[nn.Module] = []
        channels, stride, offset = 3, 1, 0.0
        for layer in self.LAYERS:
            if isinstance(layer, Normalise):
                layers.append(LocalNormalisation(layer.size, layer.alpha))
                continue
            if isinstance(layer, Conv):
                out = scaled(layer.channels, width)
                layers.append(nn.Conv2d(channels, out, layer.kernel, layer.stride, layer.padding, groups=layer.groups))
                layers.append(nn.ReLU(inplace=True))
                channels = out
            else:
                layers.append(nn.MaxPool2d(*layer))
            offset += ((layer.kernel - 1) / 2 - layer.padding) * stride
            stride *= layer.stride
        self.features = nn.Sequential(*layers)
        self.pool5 = nn.MaxPool2d(*self.POOL5)
        self.channels = [channels]
        self.strides = [stride]
        self.offset = offset
        convs = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        if pretrained:
            state = torchvision.models.get_model(self.WEIGHTS, weights="DEFAULT").features.state_dict()
            self.features.load_state_dict(state)
        for conv in convs[:frozen_convs]:
            conv.requires_grad_(False)

    def pooled_side(self, side: int) -> int:
        """Cells per side of pool5 for a square input of `side` pixels.

        Raises:
            UserError: the input is too small.
        """
        cells = side
        for layer in (*self.LAYERS, self.POOL5):
            if not isinstance(layer, Normalise):
                cells = (cells + 2 * layer.padding - layer.kernel) // layer.stride + 1
            if cells < 1:
                raise UserError(f"an input of {side} x {side} pixels is too small for {type(self).__name__}")
        return cells

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> conv5 after its ReLU, [(B, channels[0], about H / 16, about W / 16)]."""
        return [self.features(images)]


class AlexNet(ClassicBackbone):
    """torchvision's AlexNet (Krizhevsky: "One weird trick for parallelizing convolutional neural networks", 2014)."""

    LAYERS = (
        *(Conv(64, 11, 4, 2), Pool(3, 2)),
        *(Conv(192, 5, 1, 2), Pool(3, 2)),
        *(Conv(384, 3, 1, 1), Conv(256, 3, 1, 1), Conv(256, 3, 1, 1)),
    )
    POOL5 = Pool(3, 2)
    WEIGHTS = "alexnet"


class CaffeNet(ClassicBackbone):
    """R-CNN's network: Caffe's form of AlexNet (Krizhevsky, Sutskever, Hinton, NeurIPS 2012), with groups of two.

    As in Caffe's reference model pooling comes before the normalisation. torchvision has no weights of it.
    """

    LAYERS = (
        *(Conv(96, 11, 4), Pool(3, 2), Normalise(5, 1e-4)),
        *(Conv(256, 5, 1, 2, groups=2), Pool(3, 2), Normalise(5, 1e-4)),
        *(Conv(384, 3, 1, 1), Conv(384, 3, 1, 1, groups=2), Conv(256, 3, 1, 1, groups=2)),
    )
    POOL5 = Pool(3, 2)


class ZF5(ClassicBackbone):
    """SPPNet's ZF-5 (Zeiler, Fergus, ECCV 2014, as in table 1 of He et al., SPPNet).

    Every layer pads by half of its kernel, so that the first cell lies on the first pixel. No weights are at hand.
    """

    LAYERS = (
        *(Conv(96, 7, 2, 3), Normalise(3, 5e-5), Pool(3, 2, 1)),
        *(Conv(256, 5, 2, 2), Normalise(3, 5e-5), Pool(3, 2, 1)),
        *(Conv(384, 3, 1, 1), Conv(384, 3, 1, 1), Conv(256, 3, 1, 1)),
    )
    POOL5 = Pool(3, 2)


class VGG16(ClassicBackbone):
    """VGG16 (Simonyan, Zisserman, ICLR 2015, configuration D)."""

    LAYERS = (
        *(Conv(64, 3, 1, 1), Conv(64, 3, 1, 1), Pool(2, 2)),
        *(Conv(128, 3, 1, 1), Conv(128, 3, 1, 1), Pool(2, 2)),
        *(Conv(256, 3, 1, 1), Conv(256, 3, 1, 1), Conv(256, 3, 1, 1), Pool(2, 2)),
        *(Conv(512, 3, 1, 1), Conv(512, 3, 1, 1), Conv(512, 3, 1, 1), Pool(2, 2)),
        *(Conv(512, 3, 1, 1), Conv(512, 3, 1, 1), Conv(512, 3, 1, 1)),
    )
    POOL5 = Pool(2, 2)
    WEIGHTS = "vgg16"


def scaled(channels: int, width: float) -> int:
    """The number of channels at a width: even, as CaffeNet's groups of two need it."""
    return 2 * max(round(channels * width / 2), 1)
