"""Fast R-CNN (Girshick, ICCV 2015): one pass over the picture, a pooled feature per proposal, one joint loss."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from errors import UserError
from models.backbones.classic import VGG16
from models.detection.box_coder import BoxCoder
from models.detection.detector import Detections, Detector, Targets
from models.detection.postprocessing.nms import HardNMS
from models.detection.regions.classic_heads import LowRankLinear
from models.detection.regions.given_proposals import given_proposals
from models.detection.roi.box_heads import VGGHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.detection.roi.roi_head import RoIHead
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.sampler import RandomSampler
from models.loss_term import LossTerm


class FastRoIHead(RoIHead):
    """The second stage as in the paper: RoIPool, 64 proposals per picture, a quarter of them positive, NMS at .3.

    Positives overlap an object by half, negatives by .1 to .5 (section 2.3: a kind of hard example mining). Codes are
    divided by standard deviations of (.1, .1, .2, .2), the authors' rounded statistics of the targets; those of a
    dataset are printed by `tools.proposal_recall`.

    Args:
        channels: see `RoIHead`, like the others; their values are the paper's.
        num_classes: K.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        extractor: RoIExtractor | None = None,
        box_head: Callable[[int, int], nn.Module] | None = None,
        sampler: RandomSampler | None = None,
        box_coder: BoxCoder | None = None,
        postprocessor: RoIPostprocessor | None = None,
        positive_iou: float = 0.5,
        min_negative_iou: float = 0.1,
    ) -> None:
        super().__init__(
            channels,
            num_classes,
            extractor=extractor or RoIExtractor(strides=(16,), method="pool"),
            box_head=box_head or VGGHead,
            sampler=sampler or RandomSampler(size=64, positive_fraction=0.25),
            box_coder=box_coder,
            postprocessor=postprocessor or RoIPostprocessor(score_threshold=0.001, nms=HardNMS(iou_threshold=0.3)),
            positive_iou=positive_iou,
            min_negative_iou=min_negative_iou,
            smooth_l1_beta=1.0,
        )


class FastRCNN(Detector):
    """Backbone, RoI head, and proposals that come with the picture.

    Args:
        num_classes: K.
        image_size: side of the published input, in pixels.
        backbone: None is VGG16; with ImageNet weights its first four convolutions are not trained (section 4.5).
        neck: see `TwoStageDetector`.
        roi_head: called with (the channels of the features, K); None is `FastRoIHead` with VGG16's layers.
        pretrained_backbone: load ImageNet weights into the default backbone and head.
        svd_ranks: how many singular values are kept of the two fully connected layers, (1024, 256) in the paper
            (section 3.1, detection 30 % faster). An option for testing: weights of full layers are factorised when
            they are loaded.
        mean: see `Detector`, like `std`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int = 600,
        backbone: nn.Module | None = None,
        neck: Callable[[list[int]], nn.Module] | None = None,
        roi_head: Callable[[int, int], nn.Module] | None = None,
        pretrained_backbone: bool = False,
        svd_ranks: Sequence[int] | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(num_classes=num_classes, image_size=image_size, size_divisor=1, mean=mean, std=std)
        self.as_published = backbone is neck is roi_head is svd_ranks is None
        if backbone is None:
            backbone = VGG16(pretrained=pretrained_backbone, frozen_convs=4 if pretrained_backbone else 0)
        if roi_head is None:
            roi_head = partial(FastRoIHead, box_head=partial(VGGHead, pretrained=pretrained_backbone))
        self.backbone = backbone
        self.neck = None if neck is None else neck(backbone.channels)
        channels = backbone.channels[-1] if neck is None else self.neck.channels
        self.roi_head = roi_head(channels, num_classes)
        if svd_ranks is not None:
            self._replace_layers(
                svd_ranks, lambda layer, rank: LowRankLinear(layer.in_features, layer.out_features, rank)
            )

    @property
    def published(self) -> dict[str, int | float]:
        """What was published of the network with VGG16: `parameters`, and average precision.

        The parameters are VGG16's 138,357,544 with other last layers. The paper's has four more rows of codes, for the
        background, which nothing reads.
        """
        if not self.as_published:
            return {}
        parameters = 138_357_544 - 1000 * 4097 + (5 * self.num_classes + 1) * 4097
        return {"parameters": parameters, "VOC07 test mAP": 66.9, "VOC07 test mAP (07+12)": 70.0}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Preprocessed images (B, 3, H, W) -> `features` per level (B, C, H_l, W_l)."""
        features = self.backbone(images)
        return {"features": features if self.neck is None else self.neck(features)}

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """Terms `class_loss` and `box_loss`, both divided by the number of sampled proposals.

        Args:
            outputs: of `forward`, with `proposals`; see `given_proposals`.
            targets: with at least one place per image; crowds and padding are left out; the objects join the proposals.
            image_size: (B, 2).
        """
        boxes, valid = given_proposals(outputs)
        return self.roi_head.loss_terms(outputs["features"], boxes, valid, targets, image_size)

    def detect(self, outputs: dict[str, Any], image_size: Tensor) -> Detections:
        """Detections from `outputs` with `proposals`, clipped to `image_size` (B, 2)."""
        boxes, valid = given_proposals(outputs)
        return self.roi_head.detect(outputs["features"], boxes, valid, image_size)

    def truncate(self, ranks: Sequence[int]) -> None:
        """Replace the fully connected layers by their truncated SVDs, in place; see `svd_ranks`."""
        self._replace_layers(ranks, LowRankLinear.of)

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return [f"roi_head.{name}" for name in self.roi_head.class_parameters()]

    def _replace_layers(self, ranks: Sequence[int], make: Callable[[nn.Linear, int], nn.Module]) -> None:
        head = self.roi_head.box_head
        layers = [getattr(head, name, None) for name in ("fc1", "fc2")]
        if len(ranks) != 2 or not all(isinstance(layer, nn.Linear) for layer in layers):
            raise UserError(
                f"svd_ranks is {list(ranks)}: give two ranks, for the two fully connected layers of a box head such as "
                "VGGHead, AlexNetHead or TwoFCHead"
            )
        for name, layer, rank in zip(("fc1", "fc2"), layers, ranks, strict=True):
            if not 1 <= rank <= min(layer.weight.shape):
                raise UserError(f"svd_ranks has {rank}; the layer's rank is at most {min(layer.weight.shape)}")
            setattr(head, name, make(layer, rank))
