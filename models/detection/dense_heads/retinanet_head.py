"""RetinaNet's class and box subnets (Lin et al., "Focal Loss for Dense Object Detection", section 4)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.by_anchor import by_anchor

GROUPS = 32


class Subnet(nn.Module):
    """3 x 3 convolutions with ReLU and a predicting one, shared by all levels."""

    def __init__(self, channels: int, outputs: int, repeats: int, norm: str | None, bias: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None) for _ in range(repeats)
        )
        self.norms = nn.ModuleList(
            nn.Identity() if norm is None else nn.GroupNorm(GROUPS, channels) for _ in range(repeats)
        )
        self.predict = nn.Conv2d(channels, outputs, 3, padding=1)
        for conv in [*self.convs, self.predict]:
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        nn.init.constant_(self.predict.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, outputs, h, w)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.predict(x)


class RetinaNetHead(nn.Module):
    """Class logits and box codes for every anchor.

    Args:
        channels: width of the pyramid.
        num_levels: of the pyramid.
        anchors_per_cell: anchors around every cell of every level.
        num_classes: K.
        repeats: convolutions before the predicting one.
        norm: `group` normalises after each of them, in groups of 32 (torchvision's second form).
        prior: what every class's probability starts at.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        anchors_per_cell: int,
        num_classes: int,
        *,
        repeats: int = 4,
        norm: Literal["group"] | None = None,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        bias = -math.log((1 - prior) / prior)
        self.class_net = Subnet(channels, anchors_per_cell * num_classes, repeats, norm, bias)
        self.box_net = Subnet(channels, anchors_per_cell * 4, repeats, norm, 0.0)

    def forward(self, pyramid: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Pyramid of (B, channels, h_l, w_l) -> `class_logits` (B, A_l, K) and `box_codes` (B, A_l, 4) per level.

        Anchors are ordered by row, column and anchor within the cell.
        """
        return {
            "class_logits": [by_anchor(self.class_net(x), self.num_classes) for x in pyramid],
            "box_codes": [by_anchor(self.box_net(x), 4) for x in pyramid],
        }

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return ["class_net.predict.weight", "class_net.predict.bias"]
