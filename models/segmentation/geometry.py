"""Where the cells of a feature map lie on the picture, and what must be cropped so that two maps lie on one another."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn


class Grid(NamedTuple):
    """Cell i of a map is centred on pixel `stride * i + start` of the picture, in either direction.

    Attributes:
        stride: in pixels.
        start: centre of cell 0; negative where it lies in the padding.
    """

    stride: float = 1.0
    start: float = 0.0

    def down(self, kernel: int, stride: int = 1, padding: int = 0) -> "Grid":
        """The grid behind a convolution or a pooling."""
        return Grid(self.stride * stride, self.start + self.stride * ((kernel - 1) / 2 - padding))

    def up(self, kernel: int, stride: int) -> "Grid":
        """The grid behind a transposed convolution without padding."""
        fine = self.stride / stride
        return Grid(fine, self.start - fine * (kernel - 1) / 2)

    def behind(self, modules: Iterable[nn.Module]) -> "Grid":
        """The grid behind layers in sequence; layers that look at one cell only leave it as it is."""
        grid = self
        for module in modules:
            if isinstance(module, nn.Conv2d | nn.MaxPool2d):
                kernel, stride, padding = (_side(v) for v in (module.kernel_size, module.stride, module.padding))
                grid = grid.down(kernel, stride, padding)
            elif isinstance(module, nn.Sequential):
                grid = grid.behind(module)
        return grid


def crop_offset(coarse: Grid, fine: Grid) -> int:
    """How many cells of `coarse`, a map that reaches further out, lie before the first cell of `fine`.

    This is the offset of Caffe's Crop layer (Long et al.'s `coord_map`): 19 for FCN-32s, 5 and 27 for FCN-16s, 5, 9
    and 31 for FCN-8s.

    Raises:
        ValueError: the maps have different strides, or do not fall on one another by whole cells.
    """
    offset = (fine.start - coarse.start) / coarse.stride
    if coarse.stride != fine.stride or offset != int(offset) or offset < 0:
        raise ValueError(f"{coarse} cannot be cropped to {fine}: they differ by {offset} cells")
    return int(offset)


def _side(value: int | tuple[int, int]) -> int:
    return value if isinstance(value, int) else value[0]
