"""VGG16 as SSD's backbone, with the feature layers behind it (Liu et al. 2016, section 3)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from errors import UserError

# Channels of the convolutions of VGG16; a number of its own ends a stage with pooling.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Extra(NamedTuple):
    """A feature layer: a 1 x 1 convolution to `squeeze` channels, then one to `channels`."""

    squeeze: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0


EXTRAS_300 = (Extra(256, 512, 3, 2, 1), Extra(128, 256, 3, 2, 1), Extra(128, 256), Extra(128, 256))
EXTRAS_512 = (
    Extra(256, 512, 3, 2, 1), Extra(128, 256, 3, 2, 1), Extra(128, 256, 3, 2, 1), Extra(128, 256, 3, 2, 1),
    Extra(128, 256, 4, 1, 1),
)  # fmt: skip


class SSDVGG(nn.Module):
    """VGG16 up to fc7 turned into convolutions, conv4_3 rescaled, and smaller and smaller maps behind it.

    The third pooling rounds up, the fifth is 3 x 3 with stride 1, fc6 is a 3 x 3 convolution dilated by 6. Features:
    conv4_3 divided by its norm over the channels and scaled by a learned factor per channel (ParseNet), fc7, then one
    per extra layer.

    Args:
        extras: the layers behind fc7; those of SSD300 or SSD512.
        width: factor on all channels; 1 is the published network, less is for small machines.
        norm: `batch` normalises after every convolution, which the published network does not: it helps where training
            starts from random weights.
        pretrained: load torchvision's ImageNet weights into the convolutions of VGG16 (downloaded once). fc6 and fc7
            start afresh.
        frozen_stages: how many stages of VGG16, from the first, are not trained.
        initial_scale: of the rescaled conv4_3.

    Attributes:
        channels: of the features, finest first.

    Raises:
        UserError: there are no weights for this width or norm.
    """

    def __init__(
        self,
        *,
        extras: Sequence[Extra] = EXTRAS_300,
        width: float = 1.0,
        norm: Literal["batch"] | None = None,
        pretrained: bool = False,
        frozen_stages: int = 0,
        initial_scale: float = 20.0,
    ) -> None:
        super().__init__()
        if pretrained and (width != 1 or norm is not None):
            raise UserError("SSD's pretrained backbone is VGG16 as published: leave width at 1 and norm at null")
        scaled = [[max(round(c * width), 1) for c in stage] for stage in STAGES]
        fc = max(round(1024 * width), 1)
        layers: list[nn.Module] = []
        previous, first_layers = 3, []
        for i, stage in enumerate(scaled):
            first_layers.append(len(layers))
            for channels in stage:
                layers += _conv(norm, previous, channels, 3, padding=1)
                previous = channels
            if i < 4:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=i == 2))
        cut = first_layers[4] - 1  # pool4 comes after conv4_3
        self.features = nn.Sequential(*layers[:cut])
        self.deep = nn.Sequential(
            *layers[cut:],
            nn.MaxPool2d(3, 1, padding=1),
            *_conv(norm, previous, fc, 3, padding=6, dilation=6),
            *_conv(norm, fc, fc, 1),
        )
        self.scale = nn.Parameter(torch.full((scaled[3][-1],), float(initial_scale)))
        self.extras = nn.ModuleList()
        self.channels = [scaled[3][-1], fc]
        for extra in extras:
            squeeze, channels = (max(round(c * width), 1) for c in (extra.squeeze, extra.channels))
            self.extras.append(
                nn.Sequential(
                    *_conv(norm, self.channels[-1], squeeze, 1),
                    *_conv(norm, squeeze, channels, extra.kernel, stride=extra.stride, padding=extra.padding),
                )
            )
            self.channels.append(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._initialise_vgg(pretrained, cut)
        for layer in layers[: first_layers[frozen_stages] if frozen_stages < len(STAGES) else len(layers)]:
            layer.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, channels[i], H_i, W_i) per feature layer, finest first."""
        x = self.features(images)
        features = [self.scale.view(-1, 1, 1) * F.normalize(x)]
        for part in (self.deep, *self.extras):
            x = part(x)
            features.append(x)
        return features

    def _initialise_vgg(self, pretrained: bool, cut: int) -> None:
        """Fill the thirteen convolutions of VGG16: ImageNet's weights, or He's initialisation as torchvision has it."""
        if pretrained:
            state = torchvision.models.vgg16(weights="IMAGENET1K_FEATURES").features.state_dict()
            for part, shift in ((self.features, 0), (self.deep, cut)):
                known = {key for key in part.state_dict() if f"{int(key.split('.')[0]) + shift}.weight" in state}
                part.load_state_dict(
                    {key: state[f"{int(key.split('.')[0]) + shift}.{key.split('.')[1]}"] for key in known}, strict=False
                )
            return
        convs = [m for m in [*self.features, *self.deep] if isinstance(m, nn.Conv2d)]
        for conv in convs[:13]:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _conv(norm: str | None, channels: int, outputs: int, kernel: int, **options: int) -> list[nn.Module]:
    """A convolution, perhaps normalised, and a ReLU."""
    conv = nn.Conv2d(channels, outputs, kernel, bias=norm is None, **options)
    return [conv, *([] if norm is None else [nn.BatchNorm2d(outputs)]), nn.ReLU(inplace=True)]
