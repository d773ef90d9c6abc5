"""Boxes as offsets from anchors (Girshick et al., R-CNN, appendix C)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Detectron's limit on how much larger than its anchor a box may be: 1000 pixels from 16.
MAX_LOG_RATIO = math.log(1000 / 16)


class BoxCoder:
    """Centre offset in anchor sides and logarithm of the size ratio.

    Args:
        weights: factors of (x, y, w, h), 1 for EfficientDet, (10, 10, 5, 5) for Faster R-CNN.
        y_first: order the codes (y, x, h, w) as automl does, else (x, y, w, h).
        max_log_ratio: what the logarithm of a decoded size over its anchor's is clamped to; `MAX_LOG_RATIO` in
            RetinaNet and Faster R-CNN, None where nothing is clamped.
    """

    def __init__(
        self,
        *,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        y_first: bool = True,
        max_log_ratio: float | None = None,
    ) -> None:
        self.weights = tuple(weights)
        self.y_first = y_first
        self.max_log_ratio = math.inf if max_log_ratio is None else max_log_ratio

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(..., 4) XYXY and anchors (..., 4) XYXY -> codes (..., 4)."""
        x, y, w, h = _centre_and_size(boxes)
        ax, ay, aw, ah = _centre_and_size(anchors)
        wx, wy, ww, wh = self.weights
        codes = [wx * (x - ax) / aw, wy * (y - ay) / ah, ww * torch.log(w / aw), wh * torch.log(h / ah)]
        return torch.stack(self._swap(codes), -1)

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Codes (..., 4) and anchors (..., 4) XYXY -> (..., 4) XYXY, the inverse of `encode` up to the clamp."""
        tx, ty, tw, th = self._swap(codes.unbind(-1))
        ax, ay, aw, ah = _centre_and_size(anchors)
        wx, wy, ww, wh = self.weights
        x, y = tx / wx * aw + ax, ty / wy * ah + ay
        tw, th = ((t / w).clamp(max=self.max_log_ratio) for t, w in ((tw, ww), (th, wh)))
        half_w, half_h = torch.exp(tw) * aw / 2, torch.exp(th) * ah / 2
        return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)

    def _swap(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        first, second, third, fourth = values
        return (second, first, fourth, third) if self.y_first else values


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
