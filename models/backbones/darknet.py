"""The classifiers below YOLO, as backbones: the network of YOLOv1, Darknet-19 and Darknet-53.

Redmon et al.: "You Only Look Once", CVPR 2016, figure 3; Redmon, Farhadi: "YOLO9000", CVPR 2017, table 6; Redmon,
Farhadi: "YOLOv3", 2018, table 1; sizes of kernels and strides as in the `cfg` files of the authors' program, darknet.
Modules are registered in the order in which they run: that is the order of the authors' files of weights.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class DarknetConv(nn.Module):
    """Convolution, batch normalisation and leaky ReLU of slope .1.

    Batch normalisation moves its running statistics by .01 a step, as
    darknet does; its epsilon is the one of darknet's GPU code. Kernels are drawn as darknet does, from a normal
    distribution of variance 2 / fan in.

    Args:
        in_channels: of the input.
        out_channels: number of filters.
        kernel_size: 1, 3 or 7.
        stride: of the kernel.
        batch_norm: normalise; without, the convolution has a bias instead.
        bn_momentum: weight of a batch in the running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        batch_norm: bool = True,
        bn_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=not batch_norm
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=bn_momentum) if batch_norm else None
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        if not batch_norm:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, `in_channels`, H, W) -> (B, `out_channels`, H, W), at stride 2 half of these."""
        x = self.conv(x)
        return F.leaky_relu(x if self.bn is None else self.bn(x), 0.1, inplace=True)  # its gradient needs no input


class Residual(nn.Module):
    """Darknet-53's block: 1 x 1 to half the channels, 3 x 3 back, plus the input; no ReLU after the sum."""

    def __init__(self, channels: int, *, bn_momentum: float = 0.01) -> None:
        super().__init__()
        self.reduce = DarknetConv(channels, channels // 2, 1, bn_momentum=bn_momentum)
        self.expand = DarknetConv(channels // 2, channels, 3, bn_momentum=bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, `channels`, H, W) -> the same."""
        return x + self.expand(self.reduce(x))


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, as a multiple of 8 that is at least 8; unchanged at width 1."""
    return channels if width == 1 else max(8 * round(channels * width / 8), 8)


class _Stages(nn.Module):
    """Stages that run one after the other; the outputs of the last few are the features.

    Attributes:
        channels: of each feature.
        strides: of each feature, in input pixels.
    """

    def __init__(self, stages: list[nn.Module], channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.strides = strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, channels[i], H / strides[i], W / strides[i]) per feature, finest first."""
        x, features = images, []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[-len(self.channels) :]


class Darknet19(_Stages):
    """18 convolutions in 6 stages, max-pooling between them (the 19th is the classifier's).

    Args:
        num_features: stages to return, the last ones: at strides ..., 8, 16, 32.
        width: multiplies the number of filters of every layer; the paper's is 1.
        bn_momentum: see `DarknetConv`.
    """

    # Filters; in a stage 3 x 3 and 1 x 1 kernels take turns.
    STAGES = ((32,), (64,), (128, 64, 128), (256, 128, 256), (512, 256, 512, 256, 512), (1024, 512, 1024, 512, 1024))

    def __init__(self, *, num_features: int = 3, width: float = 1.0, bn_momentum: float = 0.01) -> None:
        stages, last = [], 3
        for filters in self.STAGES:
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
            for i, channels in enumerate(filters):
                layers.append(DarknetConv(last, scaled(channels, width), 1 if i % 2 else 3, bn_momentum=bn_momentum))
                last = scaled(channels, width)
            stages.append(nn.Sequential(*layers))
        channels = [scaled(filters[-1], width) for filters in self.STAGES[-num_features:]]
        super().__init__(stages, channels, [2**i for i in range(len(stages))][-num_features:])


class Darknet53(_Stages):
    """52 convolutions: five times a stride of 2 and residual blocks (the 53rd is the classifier's).

    Args:
        num_features: stages to return, the last ones: at strides ..., 8, 16, 32.
        width: multiplies the number of filters of every layer; the paper's is 1.
        bn_momentum: see `DarknetConv`.
    """

    FILTERS = (32, 64, 128, 256, 512, 1024)
    BLOCKS = (1, 2, 8, 8, 4)

    def __init__(self, *, num_features: int = 3, width: float = 1.0, bn_momentum: float = 0.01) -> None:
        filters = [scaled(channels, width) for channels in self.FILTERS]
        stages: list[nn.Module] = [DarknetConv(3, filters[0], 3, bn_momentum=bn_momentum)]
        for (last, channels), blocks in zip(pairwise(filters), self.BLOCKS, strict=True):
            down = DarknetConv(last, channels, 3, stride=2, bn_momentum=bn_momentum)
            residuals = [Residual(channels, bn_momentum=bn_momentum) for _ in range(blocks)]
            stages.append(nn.Sequential(down, *residuals))
        super().__init__(stages, filters[-num_features:], [2**i for i in range(len(stages))][-num_features:])


class YOLOv1Backbone(_Stages):
    """The 24 convolutions of YOLOv1, GoogLeNet's idea with 1 x 1 kernels in the place of inception modules.

    The first 20 are what the authors pre-trained as a classifier; the other 4 belong to the detector. One feature, at
    stride 64.

    Args:
        batch_norm: normalise, as the authors' later `cfg` does; the paper has none.
        width: multiplies the number of filters of every layer; the paper's is 1.
        bn_momentum: see `DarknetConv`.
    """

    # (filters, kernel, stride); max-pooling between the lines.
    STAGES = (
        ((64, 7, 2),),
        ((192, 3, 1),),
        ((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)),
        (*(((256, 1, 1), (512, 3, 1)) * 4), (512, 1, 1), (1024, 3, 1)),
        (*(((512, 1, 1), (1024, 3, 1)) * 2), (1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)),
    )

    def __init__(self, *, batch_norm: bool = False, width: float = 1.0, bn_momentum: float = 0.01) -> None:
        stages, last = [], 3
        for filters in self.STAGES:
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
            for channels, kernel, stride in filters:
                wide = scaled(channels, width)
                layers.append(
                    DarknetConv(last, wide, kernel, stride=stride, batch_norm=batch_norm, bn_momentum=bn_momentum)
                )
                last = wide
            stages.append(nn.Sequential(*layers))
        super().__init__(stages, [last], [64])


class FastYOLOv1Backbone(YOLOv1Backbone):
    """The 8 convolutions of Fast YOLO, with max-pooling between the first seven (`cfg/yolov1-tiny.cfg`)."""

    STAGES = (*(((filters, 3, 1),) for filters in (16, 32, 64, 128, 256, 512)), ((1024, 3, 1), (256, 3, 1)))


class DarknetClassifier(nn.Module):
    """A backbone with the classifier that it was pre-trained under: a 1 x 1 convolution, then the mean over all places.

    Args:
        backbone: its coarsest feature is classified.
        num_classes: ImageNet's 1000.
    """

    def __init__(self, backbone: nn.Module, *, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), RGB from 0 to 1 -> logits (B, num_classes)."""
        return self.classifier(self.backbone(images)[-1]).mean((2, 3))
