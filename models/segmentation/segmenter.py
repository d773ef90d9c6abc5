"""What every semantic segmenter offers, whatever its kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.loss_term import LossTerm
from models.normalise import normalise
from models.segmentation.losses import CrossEntropy, PixelLoss


class Segmenter(nn.Module, ABC):
    """Base class: preprocessing and losses here; the network in a subclass.

    Args:
        num_classes: K, the background counted.
        image_size: side in pixels that the network was published with, for `tools.model_table`.
        losses: on the scores at input size; their weighted values are added up. None is the cross-entropy averaged
            over the labelled pixels.
        auxiliary_weight: factor of the losses of an auxiliary output, where the network has one.
        mean: of the channels of the training images, on a scale from 0 to 1, in RGB order (default: ImageNet's).
        std: likewise.
        bgr: feed the channels in the order blue, green, red, as Caffe's networks take them.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        losses: Sequence[PixelLoss] | None = None,
        auxiliary_weight: float = 0.5,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = image_size
        self.losses = nn.ModuleList(losses or [CrossEntropy()])
        self.auxiliary_weight = auxiliary_weight
        self.bgr = bgr
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def preprocess(self, images: Tensor, image_size: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W), in BGR order if `bgr`; see `normalise`."""
        normalised = normalise(images, image_size, self.mean, self.std)
        return normalised.flip(1) if self.bgr else normalised

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores (logits) for preprocessed images (B, 3, H, W).

        Returns:
            `out` (B, K, H, W), and `aux` of the same shape if the network has an auxiliary head and is training.
        """

    def loss_terms(self, outputs: dict[str, Tensor], mask: Tensor) -> dict[str, LossTerm]:
        """The named losses of a batch, computed in float32; the training loss is the sum of their values.

        Args:
            outputs: of `forward`.
            mask: (B, H, W) integers 0..K-1; 255 is left out of every loss.
        """
        terms = {}
        mask = mask.long()
        for output, weight, prefix in (("out", 1.0, ""), ("aux", self.auxiliary_weight, "auxiliary_")):
            if output in outputs:
                logits = outputs[output].float()
                for loss in self.losses:
                    numerator, denominator = loss(logits, mask)
                    terms[prefix + loss.name] = LossTerm(numerator, denominator, weight * loss.weight, 0.0)
        return terms

    def class_parameters(self) -> list[str]:
        """Names of the parameters with one row per class in their first dimension: replaced if the classes change."""
        return []
