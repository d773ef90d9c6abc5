"""Detect in several views of a picture, and fuse what is found."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from models.detection.boxes import clip_boxes
from models.detection.detector import Detections
from models.detection.postprocessing.fusion import Suppression, WeightedBoxFusion

# (view, images (B, 3, H, W) uint8, image_size (B, 2)) -> detections in the pixels of the view
Detect = Callable[["View", Tensor, Tensor], Detections]


class View(NamedTuple):
    """A batch of pictures, each at the top left of its frame, resized and maybe mirrored."""

    mirrored: bool
    widths: Tensor  # (B,) float32, of the pictures, in pixels of the view
    scale: tuple[float, float]  # (x, y), from the batch's pixels to the view's

    def boxes_to(self, boxes: Tensor) -> Tensor:
        """Boxes (B, N, 4) XYXY of the batch -> of the view."""
        boxes = boxes * boxes.new_tensor(self.scale * 2)
        return self._mirror(boxes) if self.mirrored else boxes

    def boxes_from(self, boxes: Tensor) -> Tensor:
        """Boxes (B, N, 4) XYXY of the view -> of the batch."""
        boxes = self._mirror(boxes) if self.mirrored else boxes
        return boxes / boxes.new_tensor(self.scale * 2)

    def _mirror(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack([self.widths[:, None] - x2, y1, self.widths[:, None] - x1, y2], -1)


class TestTimeAugmentation:
    """Views at some scales, as they are and mirrored; one pass of the network for each.

    With the one view that changes nothing, detections are those without it, digit by digit.

    Args:
        scales: factors on the size of the input; the sides that come of it are rounded to what the network can take.
        flip: also look at every view mirrored left and right.
        fusion: makes one set of detections of those of all views; None is `WeightedBoxFusion()`.

    Raises:
        UserError: no scale, or one that is not positive.
    """

    __test__ = False  # the name is no test's, whatever pytest thinks

    def __init__(
        self,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        fusion: WeightedBoxFusion | Suppression | None = None,
    ) -> None:
        if not scales or min(scales) <= 0:
            raise UserError(f"test_time_augmentation's scales are {list(scales)}: give at least one, all positive")
        self.views = list(product(scales, (False, True) if flip else (False,)))
        self.fusion = fusion or WeightedBoxFusion()

    @torch.no_grad()
    def __call__(
        self, detect: Detect, images: Tensor, image_size: Tensor, size_divisor: int, plain: Detections | None = None
    ) -> Detections:
        """Detect in all views of a batch.

        Args:
            detect: runs the network on a view.
            images: (B, 3, H, W) uint8, each image at the top left.
            image_size: (B, 2) int64, height and width of each image.
            size_divisor: height and width of an input must be multiples of it.
            plain: what `detect` finds in the batch as it is, if that is known already.

        Returns:
            Detections in pixels of the batch, as many per image as the network gives.
        """
        found = []
        for scale, mirrored in self.views:
            same = scale == 1 and not mirrored
            if same and plain is not None:
                found.append(plain)
                continue
            view, pictures, sizes = _make_view(images, image_size, scale, mirrored, size_divisor)
            detections = detect(view, pictures, sizes)
            if not same:
                boxes = clip_boxes(view.boxes_from(detections["boxes"].float()), image_size)
                detections = {**detections, "boxes": boxes.where(detections["labels"][..., None] >= 0, 0)}
            found.append(detections)
        if self.views == [(1.0, False)]:
            return found[0]
        limit = max(one["scores"].shape[1] for one in found)
        padded = [
            {key: _pad(value, limit, -1 if key == "labels" else 0) for key, value in one.items()} for one in found
        ]
        boxes, scores, labels = (torch.stack([one[key] for one in padded], 1) for key in ("boxes", "scores", "labels"))
        return self.fusion(boxes, scores, labels, limit)


def _make_view(
    images: Tensor, image_size: Tensor, scale: float, mirrored: bool, size_divisor: int
) -> tuple[View, Tensor, Tensor]:
    """The view, its images (B, 3, H', W') uint8 and their sizes (B, 2)."""
    height, width = images.shape[-2:]
    sides = [height, width]
    if scale != 1:
        sides = [max(round(side * scale / size_divisor), 1) * size_divisor for side in sides]
        images = F.interpolate(images.float(), size=sides, mode="bilinear", antialias=True)
        images = images.round_().clamp_(0, 255).to(torch.uint8)
    factors = sides[1] / width, sides[0] / height  # x, y
    sizes = image_size
    if scale != 1:
        sizes = (image_size * image_size.new_tensor(factors[::-1], dtype=torch.float64)).round().long().clamp(min=1)
    if mirrored:
        columns = torch.arange(sides[1], device=images.device).expand(len(images), -1)
        inside = columns < sizes[:, 1:]
        columns = (sizes[:, 1:] - 1 - columns).where(inside, columns)
        images = images.gather(3, columns[:, None, None].expand(-1, *images.shape[1:3], -1))
    return View(mirrored, sizes[:, 1].float(), factors), images, sizes


def _pad(values: Tensor, length: int, value: float) -> Tensor:
    """(B, N, ...) -> (B, `length`, ...)."""
    rest = values.new_full((len(values), length - values.shape[1], *values.shape[2:]), value)
    return torch.cat([values, rest], 1)
