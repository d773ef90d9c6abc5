"""Anchors of given sides in pixels, as region proposal networks have them."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.anchors import Anchors


class SizedAnchors(Anchors):
    """Boxes of given sides and shapes at every cell of every feature level.

    A box of side s and ratio r is s / sqrt(r) wide and s * sqrt(r) high. Order: level, row, column, side, ratio.

    Args:
        strides: of the levels, in pixels, finest first.
        sizes: per level the sides in pixels of its boxes; the same number at every level.
        ratios: height over width.
        rounded: half sides to whole pixels: torchvision's trained weights expect it.
        offset: of the centres from the cells' top left corners, in strides; 0 in torchvision and detectron2.
        fitted: space the cells of a level by the input's side over the level's, rounded down, instead of the stride, as
            torchvision does. Other than its stride where the side is no multiple of it: 800 pixels are 13 cells at
            stride 64, which torchvision puts every 61 pixels.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rounded: bool = False,
        offset: float = 0.0,
        fitted: bool = False,
    ) -> None:
        if len(strides) != len(sizes) or len({len(level) for level in sizes}) != 1:
            raise ValueError(f"need as many sides for each of the {len(strides)} strides, got {sizes}")
        self.strides = tuple(strides)
        self.sizes = tuple(tuple(level) for level in sizes)
        self.ratios = tuple(ratios)
        self.rounded = rounded
        self.offset = offset
        self.fitted = fitted

    @property
    def anchors_per_cell(self) -> int:
        """Boxes at every cell."""
        return len(self.sizes[0]) * len(self.ratios)

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Tensor:
        """All anchors for feature maps of the given (height, width), one per stride.

        Returns:
            (A, 4) float32 XYXY pixels, A = sum(height * width) * anchors_per_cell. Cached: do not write into it.
        """
        shapes = self.strides, self.sizes, self.ratios, self.rounded, self.offset, self.fitted
        return _anchors(tuple(map(tuple, sizes)), *shapes, torch.device(device))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # a tensor made in a validation is used in training
def _anchors(
    maps: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    sizes: tuple[tuple[float, ...], ...],
    ratios: tuple[float, ...],
    rounded: bool,
    offset: float,
    fitted: bool,
    device: torch.device,
) -> Tensor:
    levels = []
    input_height, input_width = (strides[0] * side for side in maps[0])
    for (height, width), stride, sides in zip(maps, strides, sizes, strict=True):
        step_y, step_x = (input_height // height, input_width // width) if fitted else (stride, stride)
        y, x = torch.meshgrid(
            step_y * (torch.arange(height) + offset), step_x * (torch.arange(width) + offset), indexing="ij"
        )
        corners = torch.stack([x, y, x, y], -1)  # (height, width, 4)
        levels.append((corners[:, :, None] + _shapes(sides, ratios, rounded)).view(-1, 4))
    return torch.cat(levels).to(device)


def _shapes(sides: Sequence[float], ratios: Sequence[float], rounded: bool) -> Tensor:
    """(anchors per cell, 4) XYXY around the origin."""
    roots = torch.tensor(ratios, dtype=torch.float32).sqrt()
    side = torch.tensor(sides, dtype=torch.float32)
    width, height = (side[:, None] / roots).flatten(), (side[:, None] * roots).flatten()
    shapes = torch.stack([-width, -height, width, height], 1) / 2
    return shapes.round() if rounded else shapes
