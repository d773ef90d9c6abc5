"""The last layers of YOLOv1, which see the whole picture and know where they are."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GridOutputs(NamedTuple):
    """Raw, linear predictions for the cells of a grid, row by row; n boxes and one class each."""

    boxes: Tensor  # (B, cells, n, 4): x, y from the cell's corner in cells, square roots of w, h as shares of the input
    confidences: Tensor  # (B, cells, n)
    classes: Tensor  # (B, cells, K)


class LocallyConnected(nn.Module):
    """A 3 x 3 convolution with kernels of its own for every place, and leaky ReLU of slope .1 (darknet's `local`).

    Args:
        in_channels: of the input.
        out_channels: number of filters at every place.
        size: height and width of the input, in places.
    """

    KERNEL = 3

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        fan_in = in_channels * self.KERNEL**2
        # (places, filters, channels x rows x columns); the bias is flat, (filters x places), so that it does not decay.
        self.weight = nn.Parameter(torch.empty(size**2, out_channels, fan_in))
        self.bias = nn.Parameter(torch.zeros(out_channels * size**2))
        nn.init.uniform_(self.weight, -((2 / fan_in) ** 0.5), (2 / fan_in) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, `in_channels`, size, size) -> (B, `out_channels`, size, size)."""
        patches = F.unfold(x, self.KERNEL, padding=self.KERNEL // 2)  # (B, channels x rows x columns, places)
        x = torch.bmm(self.weight, patches.permute(2, 1, 0)).permute(2, 1, 0)  # (B, filters, places)
        x = x + self.bias.view(self.out_channels, -1)
        return F.leaky_relu(x, 0.1).unflatten(2, (int(x.shape[2] ** 0.5), -1))


class GridPrediction(nn.Module):
    """The last fully connected layer, kept as one for boxes and confidences and one for classes.

    In the authors' files both are one layer, the same numbers in another order; apart, a change of classes replaces the
    second and leaves the first.

    Args:
        in_features: of the input.
        cells: of the grid.
        boxes: n, of a cell.
        num_classes: K.
    """

    def __init__(self, in_features: int, cells: int, boxes: int, num_classes: int) -> None:
        super().__init__()
        self.cells = cells
        self.num_boxes = boxes
        self.boxes = nn.Linear(in_features, cells * boxes * 5)  # all confidences, then all boxes
        self.classes = nn.Linear(in_features, cells * num_classes)
        for layer in (self.boxes, self.classes):
            initialise_(layer)

    def forward(self, x: Tensor) -> GridOutputs:
        """(B, `in_features`) -> predictions for all cells."""
        confidences, boxes = self.boxes(x).split([self.cells * self.num_boxes, self.cells * self.num_boxes * 4], 1)
        return GridOutputs(
            boxes.reshape(len(x), self.cells, self.num_boxes, 4),
            confidences.reshape(len(x), self.cells, self.num_boxes),
            self.classes(x).view(len(x), self.cells, -1),
        )

    def darknet_rows(self, num_classes: int) -> Tensor:
        """Position among the rows of `boxes` and then `classes` of every row of darknet's layer: classes come first."""
        boxes, classes = 5 * self.cells * self.num_boxes, self.cells * num_classes
        return torch.cat([torch.arange(boxes, boxes + classes), torch.arange(boxes)])


def initialise_(layer: nn.Linear) -> nn.Linear:
    """Fill as darknet does: uniform with variance 2 / (3 fan in), no bias."""
    limit = (2 / layer.in_features) ** 0.5
    nn.init.uniform_(layer.weight, -limit, limit)
    nn.init.zeros_(layer.bias)
    return layer
