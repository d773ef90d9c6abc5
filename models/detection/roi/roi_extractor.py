"""Features of a fixed size for boxes of any size, cut out of one or several levels of features."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from models.detection.roi.gathered_roi_align import gathered_roi_align

Method = Literal["align", "pool"]


class RoIExtractor(nn.Module):
    """Every box is pooled from the level that suits its size (Lin et al., FPN, section 4.2).

    A box of width w and height h belongs to level floor(canonical_level + log2(sqrt(w h) / canonical_size)), counted
    in powers of two of the stride and limited to the levels there are. With one stride all boxes come from its level.

    Args:
        strides: of the levels to pool from, finest first; coarser features than these are left out.
        output_size: S, cells per side of the result.
        method: `align` is RoIAlign (He et al., Mask R-CNN, section 3), `pool` is RoIPool (Girshick, Fast R-CNN,
            section 2.1).
        sampling_ratio: points per side of a cell that RoIAlign averages; 0 is one per cell of the feature (slower on a
            CPU).
        aligned: place pixels' centres at half coordinates, as detectron2 does and the first RoIAlign did not.
        canonical_size: side in pixels of the boxes of the canonical level.
        canonical_level: log2 of its stride.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] = (4, 8, 16, 32),
        output_size: int = 7,
        method: Method = "align",
        sampling_ratio: int = 0,
        aligned: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.output_size = output_size
        self.method = method
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Sequence[Tensor], boxes: Tensor, taken: Tensor) -> Tensor:
        """Pool.

        Args:
            features: (B, C, H_l, W_l) per level.
            boxes: (B, P, 4) XYXY pixels of the input.
            taken: (B, P) bool, False where padded.

        Returns:
            (N, C, S, S), N the number of boxes taken.
        """
        rois = with_image(boxes, taken)
        if len(self.strides) == 1:
            return self.pool(features[0], rois, self.strides[0])
        levels = self.levels(rois[:, 1:])
        if self._gathers(rois):
            return self._gathered(features[: len(self.strides)], rois, levels, self.strides)
        # Sort the boxes by level, pool each level's, and put them back in their order.
        order = levels.argsort(stable=True)
        counts = torch.bincount(levels, minlength=len(self.strides)).tolist()
        parts = rois[order].split(counts)
        pooled = [self.pool(x, part, s) for x, part, s in zip(features, parts, self.strides, strict=False)]
        return torch.cat(pooled)[order.argsort()]

    def shape(self, channels: int) -> tuple[int, ...]:
        """Of the result for one box."""
        return channels, self.output_size, self.output_size

    def levels(self, boxes: Tensor) -> Tensor:
        """Index among `strides` for boxes (..., 4) -> (...) int64."""
        width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
        # The small constant keeps a box of exactly 112 or 448 pixels from falling a level short by rounding.
        level = (self.canonical_level + torch.log2((width * height).sqrt() / self.canonical_size) + 1e-6).floor()
        first = self.strides[0].bit_length() - 1
        return (level - first).clamp(0, len(self.strides) - 1).long()

    def pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        """One level: (B, C, H, W) at rois (N, 5) with the image's index first -> (N, C, S, S)."""
        # Coordinates are never rounded to half precision: the feature is widened instead.
        dtype = torch.promote_types(feature.dtype, rois.dtype)
        feature, rois = feature.to(dtype), rois.to(dtype)
        if self._gathers(rois):
            return self._gathered([feature], rois, torch.zeros(len(rois), dtype=torch.long), [stride])
        if self.method == "pool":
            return roi_pool(feature, rois, self.output_size, 1 / stride)
        return roi_align(feature, rois, self.output_size, 1 / stride, self.sampling_ratio, self.aligned)

    def _gathers(self, rois: Tensor) -> bool:
        """Whether `gathered_roi_align` can do it; on a GPU torchvision's kernel is the faster one."""
        return self.method == "align" and self.sampling_ratio > 0 and rois.device.type == "cpu"

    def _gathered(self, features: Sequence[Tensor], rois: Tensor, levels: Tensor, strides: Sequence[int]) -> Tensor:
        dtype = torch.promote_types(features[0].dtype, rois.dtype)
        return gathered_roi_align(
            [x.to(dtype) for x in features],
            rois.to(dtype),
            levels,
            strides,
            output_size=self.output_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )


class AllLevelsRoIExtractor(RoIExtractor):
    """PANet's adaptive feature pooling (Liu et al., CVPR 2018, section 3.2): every box from every level.

    The box head takes the levels through its first layer one by one and fuses them: `AdaptiveTwoFCHead`. Arguments as
    of `RoIExtractor`; no level is canonical.
    """

    def shape(self, channels: int) -> tuple[int, ...]:
        """Of the result for one box."""
        return len(self.strides), *super().shape(channels)

    def forward(self, features: Sequence[Tensor], boxes: Tensor, taken: Tensor) -> Tensor:
        """Features (B, C, H_l, W_l) per level and boxes (B, P, 4) taken or not (B, P) -> (N, levels, C, S, S)."""
        rois = with_image(boxes, taken)
        return torch.stack([self.pool(x, rois, s) for x, s in zip(features, self.strides, strict=False)], 1)


def with_image(boxes: Tensor, taken: Tensor) -> Tensor:
    """The N boxes of (B, P, 4) that are taken (B, P) -> (N, 5): the image's index, then the box."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None, None]
    return torch.cat([image.expand(-1, boxes.shape[1], -1), boxes], 2)[taken]
