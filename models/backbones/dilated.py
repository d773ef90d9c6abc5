"""Classifiers whose last stages keep the resolution and dilate their kernels instead, for segmentation."""

import torchvision
from torch import Tensor, nn

from errors import UserError


class DilatedResNet(nn.Module):
    """A ResNet of torchvision with output stride 8: stages 4 and 5 dilate by 2 and 4 (Chen et al. 2017, DeepLabv3).

    Args:
        name: `resnet50`, `resnet101`, or another bottleneck ResNet of torchvision.
        pretrained: load torchvision's ImageNet weights (downloaded once).

    Attributes:
        channels: of the two features, C4 (for an auxiliary head) and C5.
        strides: both 8.
    """

    channels = [1024, 2048]
    strides = [8, 8]

    def __init__(self, *, name: str = "resnet50", pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        try:
            body = torchvision.models.get_model(
                name, weights="DEFAULT" if pretrained else None, replace_stride_with_dilation=[False, True, True]
            )
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"torchvision has no ResNet {name!r} that can be dilated: choose resnet50 or deeper"
            ) from error
        del body.avgpool, body.fc
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> C4 (B, 1024, H / 8, W / 8) and C5 (B, 2048, H / 8, W / 8)."""
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        c4 = body.layer3(body.layer2(body.layer1(x)))
        return [c4, body.layer4(c4)]


class DilatedMobileNetV3(nn.Module):
    """MobileNetV3-Large of torchvision with its last stage dilated (Howard et al. 2019, section 6.4).

    Args:
        pretrained: load torchvision's ImageNet weights (downloaded once).

    Attributes:
        channels: of the two features.
        strides: 8 and 16.
    """

    name = "mobilenet_v3_large"
    channels = [40, 960]
    strides = [8, 16]
    LOW = 4  # the block whose features have stride 8

    def __init__(self, *, pretrained: bool = False) -> None:
        super().__init__()
        weights = "DEFAULT" if pretrained else None
        self.body = torchvision.models.mobilenet_v3_large(weights=weights, dilated=True).features

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> (B, 40, H / 8, W / 8) and (B, 960, H / 16, W / 16)."""
        low = self.body[: self.LOW + 1](images)
        return [low, self.body[self.LOW + 1 :](low)]
