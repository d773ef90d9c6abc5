"""From a network to the scores of a picture: in one piece, through a sliding window, at several scales."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from models.segmentation.segmenter import Segmenter


class Inference(ABC):
    """Base class: how scores are had for pictures of one size."""

    @abstractmethod
    def __call__(self, network: Segmenter, images: Tensor, out: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            network: in evaluation mode.
            images: (B, 3, H, W) float32, preprocessed.
            out: the network's own scores of the whole pictures (B, K, H, W), if they are at hand.

        Returns:
            (B, K, H, W) float32 scores, of which the largest names the class.
        """


class Whole(Inference):
    """The picture in one piece."""

    def __call__(self, network: Segmenter, images: Tensor, out: Tensor | None = None) -> Tensor:
        """See the base class."""
        return (network(images)["out"] if out is None else out).float()


class Sliding(Inference):
    """Square windows, whose scores are averaged where they overlap; the last of a row is moved back into the picture.

    Pictures smaller than a window are taken in one piece.

    Args:
        window: side of a window in pixels.
        stride: distance between windows in pixels.
    """

    def __init__(self, *, window: int = 512, stride: int = 341) -> None:
        if not 0 < stride <= window:
            raise UserError(f"a window of {window} pixels cannot slide by {stride}: give a stride of 1 to {window}")
        self.window = window
        self.stride = stride

    def __call__(self, network: Segmenter, images: Tensor, out: Tensor | None = None) -> Tensor:
        """See the base class."""
        batch, _, height, width = images.shape
        total = images.new_zeros(batch, network.num_classes, height, width, dtype=torch.float32)
        count = images.new_zeros(1, 1, height, width)
        for top in self.starts(height):
            for left in self.starts(width):
                place = (..., slice(top, top + self.window), slice(left, left + self.window))
                total[place] += network(images[place])["out"].float()
                count[place] += 1
        return total / count

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side of `length` pixels."""
        last = max(length - self.window, 0)
        return [*range(0, last, self.stride), last]


class MultiScale(Inference):
    """The mean of the probabilities at several sizes of the picture, and of its mirror image.

    Args:
        scales: factors on the picture's sides.
        flip: also take the mirror image at every scale.
        single: how a picture of one scale is taken; None is `Whole`.
    """

    def __init__(
        self,
        *,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        single: Inference | None = None,
    ) -> None:
        self.scales = scales
        self.flip = flip
        self.single = single or Whole()

    def __call__(self, network: Segmenter, images: Tensor, out: Tensor | None = None) -> Tensor:
        """See the base class."""
        size = images.shape[-2:]
        total = 0
        for scale in self.scales:
            scaled = [max(round(side * scale), 1) for side in size]
            resized = F.interpolate(images, scaled, mode="bilinear", align_corners=False) if scale != 1 else images
            total = total + self._probabilities(network, resized, size)
            if self.flip:
                total = total + self._probabilities(network, resized.flip(-1), size).flip(-1)
        return total / (len(self.scales) * (1 + self.flip))

    def _probabilities(self, network: Segmenter, images: Tensor, size: Sequence[int]) -> Tensor:
        scores = self.single(network, images)
        return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=False).softmax(1)
