"""SPPNet (He et al., ECCV 2014): one pass over the picture at several scales, regions pooled from its features."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.classic import ZF5, ClassicBackbone
from models.detection.regions.region_classifier import RegionClassifier
from models.detection.regions.spatial_pyramid import LEVELS, best_scale, pyramid_pool, response_cells
from models.detection.roi.box_heads import TwoFCHead
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.sampler import RandomSampler


class SPPNet(RegionClassifier):
    """A spatial pyramid over the cells of conv5 within each region; see `RegionClassifier` for the stages.

    In training one of the scales is drawn for all pictures of a batch; otherwise each region is pooled from the scale
    that makes it most nearly `region_side` squared.

    Args:
        num_classes: K.
        image_size: longer side of the pictures, in pixels, before they are scaled.
        backbone: None is ZF-5 with all convolutions frozen: the paper trains the fully connected layers alone, as the
            gradient cannot pass its pooling. Without weights from ImageNet let it train.
        levels: bins per side of the pyramid.
        scales: shorter sides that pictures are brought to.
        region_side: see above.
        box_head: called with the length of the pyramid and 1; None is two layers of 4096 with dropout.
        sampler: see `RegionClassifier`, like the others.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int = 500,
        backbone: ClassicBackbone | None = None,
        levels: Sequence[int] = LEVELS,
        scales: Sequence[int] = (480, 576, 688, 864, 1200),
        region_side: float = 224.0,
        box_head: Callable[[int, int], nn.Module] | None = None,
        sampler: RandomSampler | None = None,
        positive_iou: float = 0.5,
        min_negative_iou: float = 0.1,
        postprocessor: RoIPostprocessor | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        as_published = backbone is box_head is None
        backbone = backbone or ZF5(frozen_convs=len(ZF5.LAYERS))
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            pooled=(backbone.channels[-1] * sum(level**2 for level in levels), 1),
            box_head=box_head or partial(TwoFCHead, width=4096, dropout=0.5),
            sampler=sampler,
            positive_iou=positive_iou,
            min_negative_iou=min_negative_iou,
            postprocessor=postprocessor,
            mean=mean,
            std=std,
        )
        self.as_published = as_published
        self.backbone = backbone
        self.levels = tuple(levels)
        self.scales = tuple(scales)
        self.region_side = region_side

    @property
    def published(self) -> dict[str, int | float]:
        """What was published of the network with ZF-5, five scales and box regression."""
        return {"VOC07 test mAP": 59.2} if self.as_published else {}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Keep the preprocessed images (B, 3, H, W): each is scaled by its own size, which `pool` is told."""
        return {"images": images}

    def pool(self, outputs: dict[str, Any], image: Tensor, boxes: Tensor, image_size: Tensor) -> Tensor:
        """See `RegionClassifier.pool`: (N, C * bins, 1, 1)."""
        features = self.features(outputs, image_size)
        # The factor of each picture and scale, on its shorter side.
        sides = image_size.amin(1, keepdim=True).float()
        factors = torch.tensor([list(scales) for scales in features], device=boxes.device) / sides  # (B, S)
        scale = best_scale(boxes, factors[image], self.region_side)
        channels = self.backbone.channels[-1] * sum(level**2 for level in self.levels)
        pooled = boxes.new_zeros(len(boxes), channels)
        for i, maps in enumerate(features):
            for s, feature in enumerate(maps.values()):
                rows = ((image == i) & (scale == s)).nonzero().squeeze(1)
                cells = response_cells(
                    boxes[rows] * factors[i, s], self.backbone.strides[-1], self.backbone.offset, *feature.shape[-2:]
                )
                pooled = pooled.index_add(0, rows, pyramid_pool(feature, cells, self.levels).to(pooled.dtype))
        return pooled[..., None, None]

    def features(self, outputs: dict[str, Any], image_size: Tensor) -> list[dict[int, Tensor]]:
        """Per picture, by scale, conv5 (1, C, h, w); computed once and kept in `outputs`.

        Picture by picture: each has a size of its own, and what lies around it in the batch must not be seen.
        """
        if "features" not in outputs:
            scales = self.scales
            if self.training:
                scales = (scales[int(torch.randint(len(scales), ()))],)
            outputs["features"] = [
                {scale: self.backbone(_scaled(picture[None, :, :height, :width], scale))[-1] for scale in scales}
                for picture, (height, width) in zip(outputs["images"], image_size.tolist(), strict=True)
            ]
        return outputs["features"]


def _scaled(picture: Tensor, side: int) -> Tensor:
    """(1, 3, H, W) resized bilinearly so that the shorter side is `side`."""
    height, width = picture.shape[-2:]
    size = [max(round(length * side / min(height, width)), 1) for length in (height, width)]
    return F.interpolate(picture, size=size, mode="bilinear", align_corners=False)
