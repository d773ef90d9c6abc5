"""What YOLOv2 and YOLOv3 predict for every prior of every cell, and where that puts boxes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Prediction(NamedTuple):
    """Raw predictions for A priors: rows of cells from the top, cells from the left, the priors of a cell together."""

    codes: Tensor  # (B, A, 4): x, y (before the sigmoid), w, h (logarithms of factors on the prior)
    objectness: Tensor  # (B, A) logits
    class_logits: Tensor  # (B, A, K)


class PriorPrediction(nn.Module):
    """The last layer: a 1 x 1 convolution, kept as one for boxes and objectness and one for classes.

    In the authors' files both are one layer, the same numbers in another order; apart, a change of classes replaces the
    second and leaves the first.

    Args:
        in_channels: of the input.
        priors: n, of a cell.
        num_classes: K.
    """

    def __init__(self, in_channels: int, priors: int, num_classes: int) -> None:
        super().__init__()
        self.priors = priors
        self.boxes = nn.Conv2d(in_channels, 5 * priors, 1)
        self.classes = nn.Conv2d(in_channels, num_classes * priors, 1)
        for layer in (self.boxes, self.classes):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Prediction:
        """(B, C, H, W) -> predictions for A = H W n priors."""
        boxes, classes = (self._by_prior(layer(x)) for layer in (self.boxes, self.classes))
        return Prediction(boxes[..., :4], boxes[..., 4], classes)

    def _by_prior(self, x: Tensor) -> Tensor:
        """(B, n E, H, W) -> (B, H W n, E)."""
        batch, channels, height, width = x.shape
        x = x.view(batch, self.priors, channels // self.priors, height, width)
        return x.permute(0, 3, 4, 1, 2).reshape(batch, height * width * self.priors, -1)

    def darknet_rows(self, num_classes: int) -> Tensor:
        """Position among the rows of `boxes` and then `classes` of every row of darknet's layer.

        There the rows of a prior lie together: x, y, w, h, objectness, classes.
        """
        boxes = torch.arange(5 * self.priors).view(self.priors, 5)
        classes = boxes.numel() + torch.arange(num_classes * self.priors).view(self.priors, num_classes)
        return torch.cat([boxes, classes], 1).flatten()


class PriorGrid(NamedTuple):
    """Where priors are: the A of an image, level after level, each as `Prediction` orders them, or a choice of them."""

    cells: Tensor  # (A, 2) or (B, M, 2) float32, column and row
    strides: Tensor  # (A, 1) or (B, M, 1) float32, pixels
    priors: Tensor  # (A, 2) or (B, M, 2) float32, width and height in pixels

    def rows(self, index: Tensor) -> "PriorGrid":
        """The priors at positions (B, M)."""
        return PriorGrid(*(field[index] for field in self))

    def encode(self, boxes: Tensor) -> Tensor:
        """What to predict for boxes (B, M, 4) XYXY: places in the cell, from 0 to 1, and logarithms of the factors.

        A box without height or width, which has no logarithm, counts as a millionth of a pixel wide.
        """
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2 / self.strides - self.cells
        factors = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6) / self.priors
        return torch.cat([centres, factors.log()], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Boxes of codes (B, A, 4): (B, A, 4) XYXY pixels (YOLOv2, section 2, "Direct location prediction")."""
        centres = (self.cells + codes[..., :2].sigmoid()) * self.strides
        sizes = self.priors * codes[..., 2:].exp()
        return torch.cat([centres - sizes / 2, centres + sizes / 2], -1)


def prior_grid(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], priors: Sequence[Tensor], device: torch.device
) -> PriorGrid:
    """The grid of pyramids of the given size.

    Args:
        sizes: height and width of every level, in cells.
        strides: of every level, in pixels.
        priors: (n, 2) of every level, width and height in pixels.
        device: of the result.
    """
    cells, scales, boxes = [], [], []
    for (height, width), stride, level in zip(sizes, strides, priors, strict=True):
        rows, columns = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        cells.append(torch.stack([columns, rows], -1).float().view(-1, 2).repeat_interleave(len(level), 0))
        scales.append(torch.full((height * width * len(level), 1), float(stride), device=device))
        boxes.append(level.to(device).repeat(height * width, 1))
    return PriorGrid(torch.cat(cells), torch.cat(scales), torch.cat(boxes))
