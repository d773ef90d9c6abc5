"""EfficientDet's class and box networks (Tan et al. 2020, section 4.2)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from models.detection.by_anchor import by_anchor
from models.layers import SeparableConv, batch_norm, silu, variance_scaling_


class PredictionNet(nn.Module):
    """A few separable convolutions and a predicting one, shared by all levels; BN for each level and repeat."""

    def __init__(self, channels: int, num_levels: int, repeats: int, outputs: int, bias: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(SeparableConv(channels, channels) for _ in range(repeats))
        self.norms = nn.ModuleList(
            nn.ModuleList(batch_norm(channels) for _ in range(num_levels)) for _ in range(repeats)
        )
        self.predict = SeparableConv(channels, outputs)
        for conv in [*self.convs, self.predict]:
            variance_scaling_(conv.depthwise.weight)
            variance_scaling_(conv.pointwise.weight)
            nn.init.zeros_(conv.pointwise.bias)
        nn.init.constant_(self.predict.pointwise.bias, bias)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, channels, h_l, w_l) -> levels (B, outputs, h_l, w_l)."""
        results = []
        for level, x in enumerate(pyramid):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = silu(norms[level](conv(x)))
            results.append(self.predict(x))
        return results


class EfficientDetHead(nn.Module):
    """Class logits and box codes for every anchor.

    Args:
        channels: width of the pyramid.
        num_levels: of the pyramid.
        anchors_per_cell: anchors around every cell of every level.
        num_classes: K.
        repeats: convolutions before the predicting one.
        prior: what every class's probability starts at.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        anchors_per_cell: int,
        num_classes: int,
        *,
        repeats: int = 3,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        bias = -math.log((1 - prior) / prior)
        self.class_net = PredictionNet(channels, num_levels, repeats, anchors_per_cell * num_classes, bias)
        self.box_net = PredictionNet(channels, num_levels, repeats, anchors_per_cell * 4, 0.0)

    def forward(self, pyramid: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Pyramid of (B, channels, h_l, w_l) -> `class_logits` (B, A_l, K) and `box_codes` (B, A_l, 4) per level.

        Anchors are ordered by row, column and anchor within the cell.
        """
        return {
            "class_logits": [by_anchor(x, self.num_classes) for x in self.class_net(pyramid)],
            "box_codes": [by_anchor(x, 4) for x in self.box_net(pyramid)],
        }

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return ["class_net.predict.pointwise.weight", "class_net.predict.pointwise.bias"]
