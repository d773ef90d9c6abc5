"""What the three versions of YOLO share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError
from models.detection.boxes import pairwise_iou
from models.detection.detector import Detections, Detector
from models.detection.yolo.darknet_weights import read_darknet
from models.detection.yolo.yolo_postprocess import YOLOPostprocessor
from models.loss_term import LossTerm

TORCH_FILES = (b"PK", b"\x80\x02")  # how they begin: a zip archive, or a pickle before torch 1.6


class YOLO(Detector):
    """Pixels from 0 to 1, padding in grey, losses divided by the number of images, one suppression for all versions.

    Where the authors' program, darknet, computes a gradient and no loss, the losses here are what has that gradient.
    It divides sums over a batch by the number of its images; so does every `LossTerm` here.

    Args:
        num_classes: K.
        image_size: side of the input in pixels.
        size_divisor: height and width of an input must be multiples of it.
        postprocessor: picks the detections.
    """

    def __init__(
        self, *, num_classes: int, image_size: int, size_divisor: int, postprocessor: YOLOPostprocessor
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            size_divisor=size_divisor,
            mean=(0.5, 0.5, 0.5),
            std=(1.0, 1.0, 1.0),
        )
        self.postprocessor = postprocessor

    def preprocess(self, images: Tensor, image_size: Tensor) -> Tensor:
        """Pixels from 0 to 1; what lies beyond an image's own size becomes .5, as in darknet's `letterbox_image`.

        Args:
            images: (B, 3, H, W) uint8 RGB, each image at the top left.
            image_size: (B, 2) int64, height and width of each image.

        Returns:
            (B, 3, H, W) float32.
        """
        return super().preprocess(images, image_size).add_(0.5)  # the base class centres at .5 and zeroes the padding

    def check_size(self, images: Tensor) -> None:
        """See that the input can be divided into cells.

        Raises:
            UserError: height or width is not a multiple of `size_divisor`.
        """
        height, width = images.shape[-2:]
        if height % self.size_divisor or width % self.size_divisor:
            raise UserError(
                f"an input of {height} x {width} pixels does not suit {type(self).__name__}: "
                f"height and width must be multiples of {self.size_divisor}"
            )

    def boxes_and_scores(self, outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """All predictions of a batch: boxes (B, A, 4) XYXY pixels and scores (B, A, K), float32."""
        raise NotImplementedError(f"{type(self).__name__} must define boxes_and_scores()")

    def detect(self, outputs: dict[str, Any], image_size: Tensor) -> Detections:
        """Detections in input pixels, clipped to `image_size` (B, 2)."""
        return self.postprocessor(*self.boxes_and_scores(outputs), image_size)

    def read_published(self, path: Path) -> tuple[dict[str, Tensor], list[str]]:
        """The authors' files (`yolov3.weights`) by their numbers, torch's by their tensors; see the base class.

        A darknet file says neither what it is nor which classes it knows: what is no file of torch's is taken for one,
        and must have exactly as many numbers as the network for some number of classes.
        """
        with path.open("rb") as file:
            start = file.read(2)
        if start in TORCH_FILES:
            return super().read_published(path)
        return read_darknet(self, path)[0], []


def load_backbone(backbone: nn.Module, path: str | None) -> None:
    """Fill a backbone from a darknet file such as `darknet53.conv.74`; None leaves it as it is.

    Raises:
        UserError: see `read_darknet`.
    """
    if path is not None:
        state, _ = read_darknet(backbone, path)
        backbone.load_state_dict(state)


def per_image(losses: Tensor, weight: float = 1.0) -> LossTerm:
    """Losses (B,) as a term whose value is their mean over the images, times `weight`."""
    return LossTerm(losses, torch.ones_like(losses), weight, 0.0)


def check_priors(name: str, priors: Sequence[Sequence[float]], multiple: int) -> Tensor:
    """Widths and heights (P, 2) of priors given in a configuration.

    Raises:
        UserError: they are no pairs of positive numbers, or not a multiple of `multiple` many.
    """
    if not priors or len(priors) % multiple or not all(len(p) == 2 and min(p) > 0 for p in priors):
        raise UserError(
            f"{name}'s priors {priors} do not do: give pairs of positive width and height, {multiple} pairs or a "
            f"multiple of {multiple}"
        )
    return torch.tensor([[float(side) for side in prior] for prior in priors], device="cpu")


def output_parameters(network: nn.Module) -> list[str]:
    """Names of the parameters of the layers that predict classes."""
    return [name for name, _ in network.named_parameters() if name.rpartition(".")[0].endswith(".classes")]


def box_scale(boxes: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """2 - (share of the input that a box covers), (B, M, 4) -> (B, M): small boxes count up to twice."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return 2 - sides.float().prod(-1) / (size[0] * size[1] * stride**2)


@torch.no_grad()
def best_overlap(predicted: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """The largest overlap of every predicted box (B, A, 4) with a valid object (B, M, 4): (B, A)."""
    overlaps = pairwise_iou(predicted, boxes.float())
    return overlaps.where(valid[:, None], 0).amax(-1)


def row_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of boxes (..., 4) with the ones in the same place: (...)."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    areas = sum((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second))
    return (intersection / (areas - intersection)).nan_to_num(nan=0.0)
