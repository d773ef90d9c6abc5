"""The fully connected layers of the classifiers before ResNet, and their compression."""

import torch
from torch import Tensor, nn

from models.detection.roi.box_heads import ClassifierHead


class AlexNetHead(ClassifierHead):
    """That of AlexNet, for features of 256 channels and 6 x 6 cells; see `ClassifierHead`."""

    WEIGHTS = "alexnet"
    LAYERS = (1, 4)


class LowRankLinear(nn.Module):
    """A fully connected layer W x + b as two, U (S V^T x) + b, of the t largest singular values of W.

    Truncated SVD of Girshick, Fast R-CNN, section 3.1: u v weights become t (u + v). Weights of an ordinary layer are
    factorised when they are loaded.

    Args:
        inputs: v.
        outputs: u.
        rank: t.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs)

    @classmethod
    def of(cls, layer: nn.Linear, rank: int) -> "LowRankLinear":
        """The best approximation of a layer at this rank; the layer itself at full rank."""
        result = cls(layer.in_features, layer.out_features, rank).to(layer.weight)
        result.load_state_dict(layer.state_dict())
        return result

    def forward(self, x: Tensor) -> Tensor:
        """(N, v) -> (N, u)."""
        return self.second(self.first(x))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        weight = state_dict.pop(f"{prefix}weight", None)
        if weight is not None:
            rank = self.first.out_features
            u, s, vt = torch.linalg.svd(weight.float(), full_matrices=False)
            state_dict[f"{prefix}first.weight"] = (s[:rank, None] * vt[:rank]).to(weight.dtype)
            state_dict[f"{prefix}second.weight"] = u[:, :rank].to(weight.dtype)
            state_dict[f"{prefix}second.bias"] = state_dict.pop(f"{prefix}bias")
        super()._load_from_state_dict(state_dict, prefix, *rest)
