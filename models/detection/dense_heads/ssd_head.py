"""SSD's predictors (Liu et al. 2016, section 2.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.by_anchor import by_anchor


class SSDHead(nn.Module):
    """One 3 x 3 convolution on every feature layer, for classes, background and box codes of its default boxes.

    The three are kept apart, so that a change of classes replaces the first alone, and run as one.

    Args:
        channels: of the feature layers.
        num_levels: their number.
        anchors_per_cell: boxes around every cell, of each layer.
        num_classes: K.
    """

    def __init__(
        self, channels: Sequence[int], num_levels: int, anchors_per_cell: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers = list(zip(channels, anchors_per_cell, strict=True))
        self.classes, self.background, self.box_codes = (
            nn.ModuleList(nn.Conv2d(c, boxes * width, 3, padding=1) for c, boxes in layers)
            for width in (num_classes, 1, 4)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Feature layers (B, channels[l], h_l, w_l) -> `class_logits` (B, A_l, K + 1) and `box_codes` (B, A_l, 4).

        The background is class 0 of the logits. Boxes are ordered by row, column and box within the cell.
        """
        outputs: dict[str, list[Tensor]] = {"class_logits": [], "box_codes": []}
        for x, *parts in zip(features, self.background, self.classes, self.box_codes, strict=True):
            boxes = parts[0].out_channels
            weight = torch.cat([part.weight.unflatten(0, (boxes, -1)) for part in parts], 1).flatten(0, 1)
            bias = torch.cat([part.bias.view(boxes, -1) for part in parts], 1).flatten()
            rows = by_anchor(F.conv2d(x, weight, bias, padding=1), self.num_classes + 5)
            outputs["class_logits"].append(rows[..., :-4])
            outputs["box_codes"].append(rows[..., -4:])
        return outputs

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return [f"classes.{name}" for name, _ in self.classes.named_parameters()]
