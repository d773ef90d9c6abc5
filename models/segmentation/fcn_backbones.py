"""Image classifiers turned fully convolutional (Long, Shelhamer, Darrell: "Fully Convolutional Networks", section 4.1).

The fully connected layers become convolutions with the same weights, viewed as kernels; the classifier's last layer is
left out. `state_from_classifier` does that to torchvision's published weights.

Each backbone returns the features at strides 8, 16 and 32, and says in `channels` and `grids` how wide they are and
where their cells lie on the picture. Pooling rounds up, as Caffe does, so that no size of input loses its border.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from errors import UserError
from models.segmentation.geometry import Grid

WIDE = 4096  # of the fully connected layers


class FullyConvolutional(nn.Module, ABC):
    """Base class.

    Args:
        padding: of the first convolution; 100 lets any input through, down to a single pixel (reference release).
        pretrained: carry torchvision's ImageNet weights over (downloaded once).

    Attributes:
        channels: of the features at strides 8, 16, 32.
        grids: where their cells lie.

    Raises:
        UserError: `pretrained` without published weights, or at another width than theirs.
    """

    channels: list[int]
    grids: list[Grid]
    classifier: Callable[[], nn.Module] | None = None  # whose ImageNet weights `pretrained` carries over

    def __init__(self, *, padding: int = 100, pretrained: bool = False) -> None:
        super().__init__()
        self.build(padding)
        if pretrained:
            if self.classifier is None:
                raise UserError(
                    f"torchvision has no weights of {type(self).__name__}: set its pretrained to false, or take a "
                    "backbone that has some, such as AlexNet"
                )
            if getattr(self, "width", 1.0) != 1.0 or getattr(self, "batch_norm", False):
                raise UserError(
                    f"ImageNet's weights are those of {type(self).__name__} at width 1.0, not {self.width:g}, and "
                    "without batch_norm: set these two so, or its pretrained to false"
                )
            self.load_state_dict(self.state_from_classifier(self.classifier().state_dict()))

    @abstractmethod
    def build(self, padding: int) -> None:
        """Create the layers, `channels` and `grids`."""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features at strides 8, 16, 32, (B, channels[i], H_i, W_i)."""

    @abstractmethod
    def state_from_classifier(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of torchvision's classifier as one of this network."""


class ConvThenFc(FullyConvolutional):
    """A classifier of convolutions and two fully connected layers: AlexNet and VGG.

    Args:
        padding: see the base class, like `pretrained`.
        width: factor on all channels; 1 is the published network, less is for small machines.
        dropout: behind fc6 and fc7, element by element.
        batch_norm: normalise behind every convolution of `features`, which the published networks do not: they start
            from ImageNet's weights. From random weights it is what makes a short training succeed.
    """

    fc_size: int  # kernel of fc6: cells of the last pooling on the classifier's input
    fc_keys: tuple[str, str]  # torchvision's names of fc6 and fc7

    def __init__(
        self,
        *,
        padding: int = 100,
        pretrained: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        self.width = width
        self.dropout = dropout
        self.batch_norm = batch_norm
        super().__init__(padding=padding, pretrained=pretrained)

    def build(self, padding: int) -> None:
        """Create the layers; `taps` are the places in `features` behind which strides 8 and 16 are reached."""
        layers = self.layers(padding)
        if self.batch_norm:
            layers = [
                part
                for layer in layers
                for part in ([layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer])
            ]
        self.features = nn.Sequential(*layers)
        last = self.scaled(self.last_channels)
        self.fc6 = nn.Conv2d(last, self.scaled(WIDE), self.fc_size)
        self.fc7 = nn.Conv2d(self.scaled(WIDE), self.scaled(WIDE), 1)
        self.drop = nn.Dropout(self.dropout)
        grids = [Grid().behind(self.features[: i + 1]) for i in range(len(self.features))]
        self.taps = [
            max(i for i, grid in enumerate(grids) if grid.stride == s and _pools(self.features[i])) for s in (8, 16)
        ]
        self.grids = [*(grids[i] for i in self.taps), grids[-1].behind([self.fc6])]
        widths = [m.out_channels if isinstance(m, nn.Conv2d) else 0 for m in self.features]
        self.channels = [next(w for w in reversed(widths[: tap + 1]) if w) for tap in self.taps] + [self.scaled(WIDE)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @property
    @abstractmethod
    def last_channels(self) -> int:
        """Channels of the last pooling at full width."""

    @abstractmethod
    def layers(self, padding: int) -> list[nn.Module]:
        """Convolutions, activations and poolings in torchvision's order."""

    def scaled(self, channels: int) -> int:
        """The number of channels at this width."""
        return max(int(channels * self.width), 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the base class."""
        features = []
        x = images
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                features.append(x)
        x = self.drop(torch.relu(self.fc6(x)))
        return [*features, self.drop(torch.relu(self.fc7(x)))]

    def state_from_classifier(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See the base class."""
        result = {key: value for key, value in state.items() if key.startswith("features.")}
        for name, key in zip(("fc6", "fc7"), self.fc_keys, strict=True):
            result[f"{name}.weight"] = state[f"{key}.weight"].view(getattr(self, name).weight.shape)
            result[f"{name}.bias"] = state[f"{key}.bias"]
        return result


class VGG16(ConvThenFc):
    """VGG16 (Simonyan, Zisserman 2015, configuration D)."""

    fc_size = 7
    fc_keys = ("classifier.0", "classifier.3")
    last_channels = 512
    classifier = staticmethod(lambda: torchvision.models.vgg16(weights="IMAGENET1K_V1"))

    def layers(self, padding: int) -> list[nn.Module]:
        """Five groups of 3 x 3 convolutions, each with a pooling behind it."""
        layers: list[nn.Module] = []
        channels = 3
        for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeats):
                first = not layers
                layers.append(nn.Conv2d(channels, self.scaled(width), 3, padding=padding if first else 1))
                layers.append(nn.ReLU(inplace=True))
                channels = self.scaled(width)
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        return layers


class AlexNet(ConvThenFc):
    """torchvision's AlexNet (Krizhevsky: "One weird trick", 2014): 64 to 384 channels, no normalisation, no groups."""

    fc_size = 6
    fc_keys = ("classifier.1", "classifier.4")
    last_channels = 256
    classifier = staticmethod(lambda: torchvision.models.alexnet(weights="IMAGENET1K_V1"))

    def layers(self, padding: int) -> list[nn.Module]:
        """Five convolutions, three overlapping poolings."""
        c1, c2, c3, c4, c5 = (self.scaled(c) for c in (64, 192, 384, 256, 256))
        return [
            nn.Conv2d(3, c1, 11, stride=4, padding=padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        ]


class CaffeNet(ConvThenFc):
    """The AlexNet of the paper's FCN-AlexNet, Caffe's form: groups of two, pooling before the local normalisation.

    torchvision has no weights for it.
    """

    fc_size = 6
    fc_keys = ("classifier.1", "classifier.4")
    last_channels = 256

    def layers(self, padding: int) -> list[nn.Module]:
        """Five convolutions, three overlapping poolings, two local response normalisations."""
        c1, c2, c3, c4, c5 = (2 * max(self.scaled(c) // 2, 1) for c in (96, 256, 384, 384, 256))
        return [
            nn.Conv2d(3, c1, 11, stride=4, padding=padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            nn.Conv2d(c1, c2, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        ]


class GoogLeNet(FullyConvolutional):
    """torchvision's GoogLeNet (Szegedy et al. 2015, with batch normalisation) without average pooling and classifier.

    Its pooling rounds up already. The features at strides 8 and 16 are those before the third and fourth pooling.
    """

    channels = [480, 832, 1024]
    classifier = staticmethod(lambda: torchvision.models.googlenet(weights="IMAGENET1K_V1", transform_input=False))
    stages = (
        ("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b"),
        ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
        ("maxpool4", "inception5a", "inception5b"),
    )

    def build(self, padding: int) -> None:
        """Take torchvision's layers over, with the first padding replaced."""
        network = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=True)
        grid = Grid()
        self.grids = []
        for stage in self.stages:
            for name in stage:
                layer = getattr(network, name)
                self.add_module(name, layer)
                if name == "conv1":
                    layer.conv.padding = (padding, padding)
                if not name.startswith("inception"):  # all branches keep the grid
                    grid = grid.behind([getattr(layer, "conv", layer)])
            self.grids.append(grid)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the base class."""
        features = []
        x = images
        for stage in self.stages:
            for name in stage:
                x = self.get_submodule(name)(x)
            features.append(x)
        return features

    def state_from_classifier(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See the base class."""
        return {key: value for key, value in state.items() if not key.startswith(("fc.", "aux1.", "aux2."))}


def _pools(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d)
