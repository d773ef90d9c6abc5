"""Soft RoI selection of AugFPN (Guo et al., CVPR 2020, section 3.3): every box from all levels, by learned weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.roi.roi_extractor import Method, RoIExtractor, with_image
from models.necks.aug_fpn import spatial_weights


class SoftRoIExtractor(RoIExtractor):
    """Pools every box from every level and adds the results, each cell of each level by a weight between 0 and 1.

    Args:
        channels: of the features.
        strides: see `RoIExtractor`, like the other arguments; no level is canonical.
        output_size: S.
        method: `align` or `pool`.
        sampling_ratio: of RoIAlign.
        aligned: likewise.
    """

    def __init__(
        self,
        *,
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        output_size: int = 7,
        method: Method = "align",
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__(
            strides=strides, output_size=output_size, method=method, sampling_ratio=sampling_ratio, aligned=aligned
        )
        self.weights = spatial_weights(channels, len(self.strides))

    def forward(self, features: Sequence[Tensor], boxes: Tensor, taken: Tensor) -> Tensor:
        """Features (B, C, H_l, W_l) per level and boxes (B, P, 4) taken or not (B, P) -> (N, C, S, S)."""
        rois = with_image(boxes, taken)
        levels = torch.stack([self.pool(x, rois, s) for x, s in zip(features, self.strides, strict=False)], 1)
        weights = self.weights(levels.flatten(1, 2)).sigmoid()  # (N, levels, S, S)
        return torch.einsum("nlchw,nlhw->nchw", levels, weights)
