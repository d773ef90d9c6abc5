"""Recursive feature pyramid (Qiao, Chen, Yuille: "DetectoRS", CVPR 2021, section 3)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.detectors_resnet import DetectorsResNet
from models.necks.fpn import FPN
from models.necks.neck import Neck


class RecursivePyramid(nn.Module):
    """Backbone and neck in one, run more than once: what the neck made is fed back to the backbone.

    It takes the place of a detector's backbone, because the second look needs the picture again; the detector's own
    neck is `IdentityNeck`, or none in a two-stage detector. Every further pyramid is mixed with the one before it,
    place by place, by a gate that starts at one half.

    Args:
        backbone: looks first; has `channels` and `strides`; images -> features, finest first.
        feedback_backbone: looks again; called with (images, feedback per feature), has `fed_back`, the positions of
            the features that take feedback (`DetectorsResNet`). The authors have two backbones with weights of their
            own.
        neck: called with the backbone's channels; has `channels`; features -> pyramid. One for all looks.
        steps: looks at the picture.

    Attributes:
        channels: of the pyramid's levels, for as many as the backbone has.
        strides: of the backbone's levels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feedback_backbone: nn.Module,
        neck: Callable[[list[int]], Neck],
        *,
        steps: int = 2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feedback_backbone = feedback_backbone
        self.pyramid = neck(backbone.channels)
        self.steps = steps
        width = self.pyramid.channels
        self.channels = [width] * len(backbone.channels)
        self.strides = list(backbone.strides)
        self.aspp = ASPP(width)
        self.gate = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the levels of the neck (B, C, H_l, W_l), finest first."""
        pyramid = self.pyramid(self.backbone(images))
        for _ in range(self.steps - 1):
            fed_back = self.feedback_backbone.fed_back
            feedback = [self.aspp(pyramid[i]) if i in fed_back else None for i in range(len(self.strides))]
            again = self.pyramid(self.feedback_backbone(images, feedback))
            pyramid = [torch.lerp(old, new, self.gate(new).sigmoid()) for old, new in zip(pyramid, again, strict=True)]
        return pyramid


class RecursiveFPN(RecursivePyramid):
    """DetectoRS's backbone and neck in few words: two ResNets with switchable atrous convolutions, one FPN.

    It takes the arguments of a `ResNet`, so that it can take its place: `--model.network.backbone RecursiveFPN
    --model.network.neck IdentityNeck`.

    Args:
        name: of both ResNets, see `DetectorsResNet`, like the arguments that follow.
        out_indices: (1, 2, 3, 4) for detectors with two stages, (2, 3, 4) for those with one.
        pretrained: load ImageNet weights.
        frozen_stages: how many stages are not trained.
        norm: `frozen` needs pretrained weights.
        switchable_stages: with switchable atrous convolutions.
        deformable: let them move their samples too.
        channels: of the pyramid.
        num_levels: of the pyramid.
        extra: how the levels beyond the backbone's are made, see `FPN`.
        steps: looks at the picture.
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        pretrained: bool = False,
        frozen_stages: int = 0,
        norm: Literal["frozen", "batch"] = "batch",
        switchable_stages: Sequence[int] = (2, 3, 4),
        deformable: bool = False,
        channels: int = 256,
        num_levels: int = 5,
        extra: Literal["pool", "conv_c5", "conv_p5"] = "pool",
        steps: int = 2,
    ) -> None:
        resnet = partial(
            DetectorsResNet,
            name,
            out_indices=out_indices,
            pretrained=pretrained,
            frozen_stages=frozen_stages,
            norm=norm,
            switchable_stages=switchable_stages,
            deformable=deformable,
        )
        neck = partial(FPN, channels=channels, num_levels=num_levels, extra=extra)
        super().__init__(resnet(), resnet(feedback_channels=channels), neck, steps=steps)


class ASPP(nn.Module):
    """What turns a level of the pyramid into feedback (section 3.2): four views, a quarter of the channels each.

    1 x 1, 3 x 3 with dilations 3 and 6, and 1 x 1 of the mean over the map, each with a ReLU, side by side.

    Args:
        channels: of the level and of the result; a multiple of four.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels // 4, 3 if d > 1 else 1, padding=d if d > 1 else 0, dilation=d)
            for d in (1, 3, 6, 1)
        )
        for conv in self.branches:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        *local, whole = self.branches
        views = [F.relu(conv(x)) for conv in local]
        views.append(F.relu(whole(x.mean((2, 3), keepdim=True))).expand_as(views[0]))
        return torch.cat(views, 1)


class IdentityNeck(Neck):
    """No neck: for a backbone that gives a pyramid already.

    Args:
        in_channels: of the levels, all the same.

    Attributes:
        channels: of every level.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = in_channels[0]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The features as they are."""
        return list(features)
