"""A segmenter composed of a backbone and a decoder: the modern FCN, DeepLabV3, LR-ASPP, and your own."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.segmentation.losses import PixelLoss
from models.segmentation.segmenter import Segmenter

# torchvision's networks for 21 classes, by backbone and decoder: parameters, the auxiliary head counted where there is
# one, and the results of its weights on COCO's pictures of VOC's classes.
TORCHVISION = {
    ("resnet50", "FCNHead"): {"parameters": 35_322_218, "COCO-VOC mIoU": 60.5},
    ("resnet101", "FCNHead"): {"parameters": 54_314_346, "COCO-VOC mIoU": 63.7},
    ("resnet50", "DeepLabHead"): {"parameters": 42_004_074, "COCO-VOC mIoU": 66.4},
    ("resnet101", "DeepLabHead"): {"parameters": 60_996_202, "COCO-VOC mIoU": 67.4},
    ("mobilenet_v3_large", "DeepLabHead"): {"parameters": 11_029_328, "COCO-VOC mIoU": 60.3},
    ("mobilenet_v3_large", "LRASPPHead"): {"parameters": 3_221_538, "COCO-VOC mIoU": 57.9},
}


class EncoderDecoder(Segmenter):
    """Backbone, decoder, bilinear upsampling to the input's size.

    The decoders are given as factories (in YAML: a `class_path` with all but their first two arguments), because
    their widths follow from the backbone and the number of classes from the data.

    Args:
        num_classes: K, the background counted.
        backbone: has `channels`; images -> features, finest first.
        decoder: called with (the backbone's channels, K); features -> (B, K, h, w); has `class_parameters()`.
        auxiliary: likewise; a second decoder whose loss supports training. It is left out in evaluation.
        image_size: see `Segmenter`, like the arguments below.
        losses: on the scores of both.
        auxiliary_weight: factor of the auxiliary decoder's losses.
        mean: of the training images.
        std: likewise.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: nn.Module,
        decoder: Callable[[list[int], int], nn.Module],
        auxiliary: Callable[[list[int], int], nn.Module] | None = None,
        image_size: int = 520,
        losses: Sequence[PixelLoss] | None = None,
        auxiliary_weight: float = 0.5,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            losses=losses,
            auxiliary_weight=auxiliary_weight,
            mean=mean,
            std=std,
        )
        self.backbone = backbone
        self.decoder = decoder(backbone.channels, num_classes)
        self.auxiliary = None if auxiliary is None else auxiliary(backbone.channels, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See `Segmenter.forward`."""
        features = self.backbone(images)
        size = images.shape[-2:]
        outputs = {"out": self.decoder(features)}
        if self.auxiliary is not None and self.training:
            outputs["aux"] = self.auxiliary(features)
        return {name: F.interpolate(x, size, mode="bilinear", align_corners=False) for name, x in outputs.items()}

    @property
    def published(self) -> dict[str, int | float]:
        """What torchvision reports of this network; nothing of any other."""
        decoder = type(self.decoder).__name__
        row = TORCHVISION.get((getattr(self.backbone, "name", ""), decoder), {})
        has_auxiliary = self.auxiliary is not None
        return dict(row) if self.num_classes == 21 and has_auxiliary == (decoder != "LRASPPHead") else {}

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        parts = {"decoder": self.decoder, "auxiliary": self.auxiliary}
        return [f"{name}.{key}" for name, part in parts.items() if part for key in part.class_parameters()]
