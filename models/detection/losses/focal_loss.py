"""Focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.detection.matcher import IGNORED

# The loss passes several times over its logits. On a CPU slices of this many stay in the cache between the passes,
# which is several times faster; on a GPU the slices only bound the memory of the passes.
SLICE_ELEMENTS = {"cpu": 2**17}
SLICE_ELEMENTS_ELSEWHERE = 2**26


class FocalLoss(nn.Module):
    """Sigmoid focal loss, summed over anchors and classes.

    With p = sigmoid(x): for an anchor's own class `-alpha (1 - p)^gamma log p`, for every other class
    `-(1 - alpha) p^gamma log(1 - p)`.

    Args:
        alpha: weight of the positives; 0.25 in EfficientDet and RetinaNet.
        gamma: focusing exponent; 1.5 in EfficientDet, 2 in RetinaNet.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 1.5) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Loss of every image.

        Args:
            logits: per feature level (B, A_l, K), any floating type; the arithmetic is float32.
            labels: (B, A) int64 with A = sum(A_l): a class in 0..K-1, or NEGATIVE, or IGNORED (no loss at all).

        Returns:
            (B,) float32, not normalised.
        """
        parts = labels.split([level.shape[1] for level in logits], 1)
        sums = [_FocalSum.apply(x, y, self.alpha, self.gamma) for x, y in zip(logits, parts, strict=True)]
        return torch.stack(sums).sum(0)


class _FocalSum(torch.autograd.Function):
    """Focal loss per image with its gradient in closed form.

    All places are taken as negatives in one pass; the few positives are then corrected. So there is no table of
    one-hot targets, nothing but the logits is kept for the backward pass, and no other (B, A, K) tensor than the
    gradient itself is ever made.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        """(B, A, K), (B, A) -> (B,) float32."""
        rows = logits.reshape(-1, logits.shape[-1])
        loss = torch.empty(len(rows), device=rows.device)  # per anchor
        for part in _slices(rows):
            torch.sum(_negative_loss(rows[part].float(), gamma), 1, out=loss[part])
        loss.mul_(1 - alpha)
        _, x = _own_class(rows, labels)
        positive = labels.flatten() >= 0
        correction = alpha * _positive_loss(x, gamma) - (1 - alpha) * _negative_loss(x, gamma)
        loss += correction.squeeze(1).where(positive, 0)
        ctx.save_for_backward(logits, labels)
        ctx.alpha, ctx.gamma = alpha, gamma
        return loss.view_as(labels).where(labels != IGNORED, 0).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(B,) -> (B, A, K) in the type of the logits."""
        logits, labels = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        rows = logits.reshape(-1, logits.shape[-1])
        scale = grad[:, None].where(labels != IGNORED, 0).reshape(-1, 1)  # of each anchor
        result = torch.empty_like(rows)
        for part in _slices(rows):
            result[part] = _negative_slope(rows[part].float(), gamma).mul_((1 - alpha) * scale[part])
        index, x = _own_class(rows, labels)
        positive = labels.reshape(-1, 1) >= 0
        slope = (scale * alpha * _positive_slope(x, gamma)).to(result.dtype)
        result.scatter_(1, index, slope.where(positive, result.gather(1, index)))
        return result.view_as(logits), None, None, None


def _slices(rows: Tensor) -> list[slice]:
    step = max(SLICE_ELEMENTS.get(rows.device.type, SLICE_ELEMENTS_ELSEWHERE) // rows.shape[1], 1)
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _own_class(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Index and float32 logit of every anchor's own class, (B * A, 1) each; class 0 where it has none."""
    index = labels.clamp(min=0).reshape(-1, 1)
    return index, rows.gather(1, index).float()


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without `log1p`, which torch evaluates ten times slower than `atanh` on some CPUs.

    With u = exp(-|x|): max(x, 0) + log(1 + u), and log(1 + u) = 2 atanh(u / (2 + u)), exact to rounding.
    """
    u = x.abs().neg_().exp_()
    return torch.add(x.clamp(min=0), u.div_(u + 2).atanh_(), alpha=2)


def _negative_loss(x: Tensor, gamma: float) -> Tensor:
    """p^gamma * -log(1 - p), with log p = x - softplus(x)."""
    softplus = _softplus(x)
    return (x - softplus).mul_(gamma).exp_().mul_(softplus)


def _negative_slope(x: Tensor, gamma: float) -> Tensor:
    """Its derivative p^gamma * (gamma (1 - p) softplus(x) + p)."""
    softplus = _softplus(x)
    p = torch.sigmoid(x)
    power = (x - softplus).mul_(gamma).exp_()
    return torch.addcmul(p, softplus.mul_(gamma), 1 - p).mul_(power)


def _positive_loss(x: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma * -log p: the negative loss mirrored."""
    return _negative_loss(-x, gamma)


def _positive_slope(x: Tensor, gamma: float) -> Tensor:
    """Derivative of the positive loss."""
    return -_negative_slope(-x, gamma)
