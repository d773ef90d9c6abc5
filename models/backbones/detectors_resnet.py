"""The backbone of DetectoRS (Qiao, Chen, Yuille, CVPR 2021): a ResNet that can look twice, in two senses."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.resnet import ResNet
from models.backbones.switchable_atrous import standardise_convs, switch_convs


class DetectorsResNet(ResNet):
    """A ResNet with switchable atrous convolutions, which takes what a pyramid made of the picture before.

    Args:
        name: see `ResNet`, like `out_indices`, `pretrained`, `frozen_stages`, `norm` and `norm_eps`.
        switchable_stages: whose 3 x 3 convolutions become switchable (2, 3, 4 are C3 to C5); all others of the network
            are standardised then. Empty leaves the network as it is.
        deformable: let the switchable convolutions move their samples too, as the authors do.
        feedback_channels: of the features that the first block of every returned stage beyond C2 takes back; None
            where there is no feedback. It comes in through a 1 x 1 convolution that starts at zero, before the block's
            last ReLU.

    Attributes:
        channels: see `ResNet`, like `strides`.
        fed_back: positions among the returned features of those that take feedback.
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        out_indices: Sequence[int] = (2, 3, 4),
        pretrained: bool = False,
        frozen_stages: int = 2,
        norm: Literal["frozen", "batch"] = "frozen",
        norm_eps: float = 1e-5,
        switchable_stages: Sequence[int] = (2, 3, 4),
        deformable: bool = False,
        feedback_channels: int | None = None,
    ) -> None:
        super().__init__(
            name,
            out_indices=out_indices,
            pretrained=pretrained,
            frozen_stages=frozen_stages,
            norm=norm,
            norm_eps=norm_eps,
        )
        for stage in switchable_stages:
            if stage <= max(self.out_indices):
                switch_convs(getattr(self.body, f"layer{stage}"), deformable=deformable)
        if switchable_stages:
            standardise_convs(self.body)
        self.fed_back = [k for k, i in enumerate(self.out_indices) if feedback_channels and i > 1]
        self.feedback = nn.ModuleDict(
            {str(self.out_indices[k]): nn.Conv2d(feedback_channels, self.channels[k], 1) for k in self.fed_back}
        )
        for conv in self.feedback.values():
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor, feedback: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Features as of `ResNet`.

        Args:
            images: (B, 3, H, W).
            feedback: per returned feature (B, feedback_channels, H_i, W_i); what is not in `fed_back` is not read.
        """
        if feedback is None:
            return super().forward(images)
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        features = []
        for i, layer in enumerate(self._layers(body), 1):
            first, *others = layer
            if str(i) in self.feedback:
                x = F.relu(before_last_relu(first, x) + self.feedback[str(i)](feedback[len(features)]))
            else:
                x = first(x)
            for block in others:
                x = block(x)
            if i in self.out_indices:
                features.append(x)
        return features


def before_last_relu(block: nn.Module, x: Tensor) -> Tensor:
    """What a residual block of torchvision (basic or bottleneck) gives to its last ReLU."""
    steps = [(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    y = x
    for number, (conv, norm) in enumerate(steps, 1):
        y = norm(conv(y))
        if number < len(steps):
            y = F.relu(y)
    return y + (x if block.downsample is None else block.downsample(x))
