"""What turns the pooled features of a box into the vector that its class and its codes are predicted from."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.backbones.resnet import freeze_norms


class TwoFCHead(nn.Module):
    """Two fully connected layers (Lin et al., FPN, section 5.2; with 4096 and dropout the top of VGG16).

    Args:
        channels: C of the features.
        size: S, their side.
        width: of both layers.
        dropout: after each layer; VGG16 has 0.5.

    Attributes:
        channels: of the result.
    """

    def __init__(self, channels: int, size: int, *, width: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels = width
        self.fc1 = nn.Linear(channels * size**2, width)
        self.fc2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, width)."""
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        return self.dropout(F.relu(self.fc2(x)))


class ClassifierHead(TwoFCHead):
    """The two fully connected layers of one of torchvision's classifiers.

    Args:
        channels: of the features.
        size: their side.
        dropout: after each layer.
        pretrained: start from torchvision's ImageNet weights (downloaded once).
    """

    WEIGHTS: ClassVar[str]  # torchvision's name of the network
    LAYERS: ClassVar[tuple[int, int]]  # in its `classifier`

    def __init__(self, channels: int, size: int, *, dropout: float = 0.5, pretrained: bool = False) -> None:
        super().__init__(channels, size, width=4096, dropout=dropout)
        if pretrained:
            classifier = torchvision.models.get_model(self.WEIGHTS, weights="DEFAULT").classifier
            for layer, place in zip((self.fc1, self.fc2), self.LAYERS, strict=True):
                layer.load_state_dict(classifier[place].state_dict())


class VGGHead(ClassifierHead):
    """That of VGG16, for features of 512 channels and 7 x 7 cells; see `ClassifierHead`."""

    WEIGHTS = "vgg16"
    LAYERS = (0, 3)


class ResNetHead(nn.Module):
    """The last stage of a ResNet and an average: the head of a detector on C4 (He et al., ResNet, appendix A).

    Args:
        channels: of C4.
        size: side of the pooled features, 14; the stage halves it.
        name: of torchvision's ResNet, that of the backbone.
        pretrained: load torchvision's best ImageNet weights (downloaded once).
        norm: `frozen` makes its batch normalisation a fixed affine map, `batch` trains it.

    Attributes:
        channels: of the result.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        name: str = "resnet50",
        pretrained: bool = False,
        norm: Literal["frozen", "batch"] = "frozen",
    ) -> None:
        super().__init__()
        network = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        self.channels = network.fc.in_features
        self.layer4 = network.layer4
        if norm == "frozen":
            freeze_norms(self.layer4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, channels)."""
        return self.layer4(x).mean((2, 3))


class AdaptiveTwoFCHead(nn.Module):
    """PANet's: a first layer of its own for every level, the largest response of all levels, a second layer.

    (Liu et al., CVPR 2018, section 3.2.)

    Args:
        channels: C of the features.
        size: S, their side.
        levels: L, that `AllLevelsRoIExtractor` pools from.
        width: of both layers.

    Attributes:
        channels: of the result.
    """

    def __init__(self, channels: int, size: int, *, levels: int = 4, width: int = 1024) -> None:
        super().__init__()
        self.channels = width
        self.fc1 = nn.ModuleList(nn.Linear(channels * size**2, width) for _ in range(levels))
        self.fc2 = nn.Linear(width, width)
        for layer in (*self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C, S, S) -> (N, width)."""
        levels = [fc(level.flatten(1)) for fc, level in zip(self.fc1, x.unbind(1), strict=True)]
        # The ReLU of the largest is the largest of the ReLUs.
        return F.relu(self.fc2(F.relu(torch.stack(levels).amax(0))))


class ConvFCHead(nn.Module):
    """3 x 3 convolutions with batch normalisation, then one fully connected layer: torchvision's v2 head.

    Args:
        channels: C of the features.
        size: S, their side.
        convs: number of convolutions.
        conv_channels: of each.
        width: of the fully connected layer.

    Attributes:
        channels: of the result.
    """

    def __init__(
        self, channels: int, size: int, *, convs: int = 4, conv_channels: int = 256, width: int = 1024
    ) -> None:
        super().__init__()
        self.channels = width
        inputs = [channels] + [conv_channels] * (convs - 1)
        self.convs = nn.ModuleList(nn.Conv2d(c, conv_channels, 3, padding=1, bias=False) for c in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv_channels) for _ in inputs)
        self.fc = nn.Linear(conv_channels * size**2, width)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, width)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return F.relu(self.fc(x.flatten(1)))
