"""R-CNN (Girshick et al.: "Rich feature hierarchies ...", CVPR 2014): every region through the network, on its own."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.backbones.classic import AlexNet, ClassicBackbone
from models.detection.regions.classic_heads import AlexNetHead
from models.detection.regions.region_classifier import RegionClassifier
from models.detection.regions.warp import warp
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.sampler import RandomSampler


class RCNN(RegionClassifier):
    """Regions warped to the input of an image classifier, with context; see `RegionClassifier` for the stages.

    The paper's network is Caffe's form of AlexNet; torchvision's has weights.

    Args:
        num_classes: K.
        image_size: longer side of the pictures that regions are cut from, in pixels.
        warp_size: side of a region in the network.
        context: border of a region in the network, in pixels.
        backbone: None is AlexNet.
        box_head: called with the channels and the side of pool5; None is AlexNet's layers.
        pretrained_backbone: load ImageNet weights into the default backbone and head.
        sampler: see `RegionClassifier`, like the others.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int = 500,
        warp_size: int = 227,
        context: int = 16,
        backbone: ClassicBackbone | None = None,
        box_head: Callable[[int, int], nn.Module] | None = None,
        pretrained_backbone: bool = False,
        sampler: RandomSampler | None = None,
        positive_iou: float = 0.5,
        min_negative_iou: float = 0.0,
        postprocessor: RoIPostprocessor | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        as_published = backbone is box_head is None
        backbone = backbone or AlexNet(pretrained=pretrained_backbone)
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            pooled=(backbone.channels[-1], backbone.pooled_side(warp_size)),
            box_head=box_head or partial(AlexNetHead, pretrained=pretrained_backbone),
            sampler=sampler,
            positive_iou=positive_iou,
            min_negative_iou=min_negative_iou,
            postprocessor=postprocessor,
            mean=mean,
            std=std,
        )
        self.as_published = as_published
        self.warp_size = warp_size
        self.context = context
        self.backbone = backbone

    @property
    def published(self) -> dict[str, int | float]:
        """What was published of the network with AlexNet: `parameters`, and average precision with box regression.

        The parameters are those of torchvision's AlexNet, 61,100,840, with another last layer.
        """
        if not self.as_published:
            return {}
        parameters = 61_100_840 - 1000 * 4097 + (self.num_classes + 1) * 4097
        return {"parameters": parameters, "VOC07 test mAP": 58.5, "VOC12 test mAP": 53.3}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Keep the preprocessed images (B, 3, H, W): the network sees nothing but regions."""
        return {"images": images}

    def pool(self, outputs: dict[str, Any], image: Tensor, boxes: Tensor, image_size: Tensor) -> Tensor:
        """See `RegionClassifier.pool`: pool5."""
        crops = warp(outputs["images"], image, boxes, image_size, size=self.warp_size, context=self.context)
        return self.backbone.pool5(self.backbone(crops)[-1])
