"""What every object detector offers, whatever its kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from models.checkpoint_file import read_checkpoint
from models.loss_term import LossTerm
from models.normalise import normalise


class Targets(TypedDict):
    """The objects of a batch, padded to M per image."""

    boxes: Tensor  # (B, M, 4) float32, XYXY pixels of the network's input
    labels: Tensor  # (B, M) int64, 0..K-1; -1 is padding
    iscrowd: Tensor  # (B, M) bool; crowds take no part in training
    area: Tensor  # (B, M) float32, pixels


class Detections(TypedDict):
    """What was found in a batch: D places per image by descending score, padded with score 0 and label -1."""

    boxes: Tensor  # (B, D, 4) float32, XYXY pixels of the network's input
    scores: Tensor  # (B, D) float32
    labels: Tensor  # (B, D) int64


class Detector(nn.Module, ABC):
    """Base class: preprocessing here; the network, its losses and its postprocessing in a subclass.

    Args:
        num_classes: K, without a background class.
        image_size: side in pixels of the square input the network was published with.
        size_divisor: height and width of an input must be multiples of it.
        mean: of the RGB channels of the training images, on a scale from 0 to 1 (default: ImageNet's).
        std: likewise.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        size_divisor: int,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = image_size
        self.size_divisor = size_divisor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def preprocess(self, images: Tensor, image_size: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W); see `normalise`."""
        return normalise(images, image_size, self.mean, self.std)

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw outputs of the network for preprocessed images (B, 3, H, W)."""

    @abstractmethod
    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """The named losses of a batch, computed in float32; the training loss is the sum of their values."""

    @abstractmethod
    def detect(self, outputs: dict[str, Any], image_size: Tensor) -> Detections:
        """Boxes, scores and labels, clipped to `image_size` (B, 2) (height, width)."""

    def class_parameters(self) -> list[str]:
        """Names of the parameters whose first dimension is (anchors x classes): what a change of classes replaces."""
        return []

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in the layout of another program, in this network's names and order.

        Called for files that hold names unknown here. The result has the rows of the file's own classes, however many
        this network has, in all `class_parameters` and no others.

        Args:
            state: as `read_published` gives it.

        Raises:
            UserError: the file is known not to fit; the message goes on after the name of the file and a colon.
        """
        return state

    def read_published(self, path: Path) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors of a file by name, and the names of its classes, none where it does not say.

        A detector whose authors' files are not torch's overrides it.

        Raises:
            UserError: the file cannot be read.
        """
        return read_checkpoint(path)
