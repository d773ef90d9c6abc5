"""SSD's default boxes (Liu et al. 2016, section 2.2, and `prior_box_layer.cpp` of the authors' Caffe)."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.anchors import Anchors, Pyramid


class DefaultBoxes(Anchors):
    """Boxes around the centre of every cell, their sides shares of the image, other ones on every level.

    At scale s, with s' the scale of the next level: squares of side s and sqrt(s s'), then for every ratio r boxes
    s sqrt(r) wide and s / sqrt(r) high, and the other way round. Order: level, row, column, box.

    Args:
        image_size: side of the input in pixels.
        strides: of the levels, in pixels; the coarse ones need not divide anything.
        scales: shares of `image_size`, one per level and one more for the last level's larger square.
        ratios: of each level, beside 1.
        clip: no box is wider or higher than the image, as in torchvision; the authors' boxes reach beyond it.
    """

    def __init__(
        self,
        *,
        image_size: int = 300,
        strides: Sequence[int] = (8, 16, 32, 64, 100, 300),
        scales: Sequence[float] = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05),
        ratios: Sequence[Sequence[float]] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        clip: bool = False,
    ) -> None:
        if not len(strides) == len(ratios) == len(scales) - 1:
            raise ValueError(
                f"need as many ratios as strides and one scale more, got {len(ratios)}, {len(strides)}, {len(scales)}"
            )
        self.image_size = image_size
        self.strides = tuple(strides)
        self.scales = tuple(scales)
        self.ratios = tuple(tuple(level) for level in ratios)
        self.clip = clip

    @property
    def anchors_per_cell(self) -> list[int]:
        """Boxes around every centre, of each level."""
        return [2 + 2 * len(level) for level in self.ratios]

    def __call__(self, sizes: Pyramid, device: torch.device | str = "cpu") -> Tensor:
        """All boxes (A, 4) float32 XYXY pixels, see `Anchors`. Cached: do not write into it."""
        shapes = self.image_size, self.strides, self.scales, self.ratios, self.clip
        return _boxes(tuple(map(tuple, sizes)), *shapes, torch.device(device))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # a tensor made in a validation is used in training
def _boxes(
    sizes: tuple[tuple[int, int], ...],
    image_size: int,
    strides: tuple[int, ...],
    scales: tuple[float, ...],
    ratios: tuple[tuple[float, ...], ...],
    clip: bool,
    device: torch.device,
) -> Tensor:
    levels = []
    for i, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        scale = scales[i]
        shapes = [(scale, scale), (math.sqrt(scale * scales[i + 1]),) * 2]
        for ratio in ratios[i]:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        # Shares of the image in float32, as torchvision computes them: objects that contain boxes overlap several of
        # them equally, and the last digit decides which is the best.
        sides = torch.tensor(shapes, dtype=torch.float32)  # (boxes, 2)
        half = 0.5 * (sides.clamp(max=1) if clip else sides)
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / (image_size / stride),
            (torch.arange(width) + 0.5) / (image_size / stride),
            indexing="ij",
        )
        centres = torch.stack([x, y], -1)[:, :, None]  # (height, width, 1, 2)
        levels.append(torch.cat([centres - half, centres + half], -1).view(-1, 4) * image_size)
    return torch.cat(levels).to(device)
