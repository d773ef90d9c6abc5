"""A learned mixture of the layers of a network (Peters et al. 2018, section 3.2)."""

import torch
from torch import Tensor, nn

EPSILON = 1e-12  # under the root of the variance


class ScalarMix(nn.Module):
    """gamma * sum over layers of softmax(s)_j * h_j, with the layer weights s and the scale gamma learned.

    All layers begin with equal weights (s = 0) and gamma is 1.

    Args:
        layers: number of layers L.
        normalise: first bring each layer to mean 0 and variance 1, taken over all its elements that are no padding
            (not per position, as `nn.LayerNorm` would).
        dropout: of the mixture; the paper drops half in most tasks.
    """

    def __init__(self, layers: int, *, normalise: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.normalise = normalise
        self.weights = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(dropout)

    def forward(self, layers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix.

        Args:
            layers: (L, B, T, D).
            mask: (B, T) bool, false where padding is; None: nothing is padding. Matters to `normalise` only.

        Returns:
            (B, T, D).
        """
        if self.normalise:
            layers = normalised(layers, mask)
        return self.dropout(self.gamma * torch.einsum("l,lbtd->btd", self.weights.softmax(0), layers))


def normalised(layers: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each layer (L, B, T, D) less the mean of its elements, divided by their deviation; padding does not count."""
    if mask is None:
        mask = torch.ones(layers.shape[1:3], dtype=torch.bool, device=layers.device)
    counts = mask[..., None].to(layers.dtype)
    elements = counts.sum() * layers.shape[-1]
    mean = (layers * counts).sum((1, 2, 3), keepdim=True) / elements
    variance = ((layers - mean) * counts).square().sum((1, 2, 3), keepdim=True) / elements
    return (layers - mean) / (variance + EPSILON).sqrt()
