"""Anchor boxes on a regular grid (automl `efficientdet/tf2/anchors.py`; Lin et al., RetinaNet, section 4)."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

Pyramid = Sequence[tuple[int, int]]  # height and width of every level, in cells


class Anchors(ABC):
    """Where the anchors of a detector are.

    Attributes:
        strides: of the levels, in pixels, finest first.
        anchors_per_cell: a list of one number per level where they differ.
    """

    strides: tuple[int, ...]
    anchors_per_cell: int | list[int]

    @abstractmethod
    def __call__(self, sizes: Pyramid, device: torch.device | str = "cpu") -> Tensor:
        """All anchors (A, 4) float32 XYXY pixels by level, row, column, anchor of a cell; not to be written into."""


class AnchorGenerator(Anchors):
    """Boxes of several sizes and shapes around the centre of every cell of every feature level.

    The side of octave o at stride s is `scale * s * 2**(o / octaves)`; a box of aspect ratio r (width over height) has
    that side times sqrt(r) as its width and over sqrt(r) as its height. Order: level, row, column, octave, ratio.

    Args:
        strides: of the levels, in pixels, finest first.
        scale: side of the first octave in strides (4; D7 has 5).
        octaves: sizes per level.
        ratios: width over height.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        scale: float = 4.0,
        octaves: int = 3,
        ratios: Sequence[float] = (1.0, 2.0, 0.5),
    ) -> None:
        self.strides = tuple(strides)
        self.scale = scale
        self.octaves = octaves
        self.ratios = tuple(ratios)

    @property
    def anchors_per_cell(self) -> int:
        """Boxes around every centre."""
        return self.octaves * len(self.ratios)

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Tensor:
        """All anchors for feature maps of the given (height, width), one per stride.

        Returns:
            (A, 4) float32 XYXY pixels, A = sum(height * width) * anchors_per_cell. Cached: do not write into it.
        """
        shapes = self.scale, self.octaves, self.ratios
        return _anchors(tuple(map(tuple, sizes)), self.strides, *shapes, torch.device(device))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # a tensor made in a validation is used in training
def _anchors(
    sizes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    scale: float,
    octaves: int,
    ratios: tuple[float, ...],
    device: torch.device,
) -> Tensor:
    # In float64 and then rounded, as the published code does.
    sides = scale * 2 ** (torch.arange(octaves, dtype=torch.float64) / octaves)
    roots = torch.tensor(ratios, dtype=torch.float64).sqrt()
    half_widths = (sides[:, None] * roots).flatten() / 2  # in strides
    half_heights = (sides[:, None] / roots).flatten() / 2
    offsets = torch.stack([-half_widths, -half_heights, half_widths, half_heights], 1)  # (anchors per cell, 4)
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float64) + 0.5,
            torch.arange(width, dtype=torch.float64) + 0.5,
            indexing="ij",
        )
        centres = torch.stack([x, y, x, y], -1)  # (height, width, 4)
        levels.append((centres[:, :, None] + offsets).view(-1, 4) * stride)
    return torch.cat(levels).float().to(device)
