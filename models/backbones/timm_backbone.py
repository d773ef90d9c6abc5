"""Any image classifier of timm as a feature pyramid's backbone."""

from collections.abc import Sequence

import timm
from torch import Tensor, nn


class TimmBackbone(nn.Module):
    """A timm classifier cut into stages.

    Args:
        name: a model of timm. The `tf_` EfficientNets pad as TensorFlow does and have its BN epsilon.
        out_indices: stages to return; for EfficientNets 2, 3, 4 are the last features at strides 8, 16, 32.
        pretrained: load timm's ImageNet weights (downloaded once).
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        bn_momentum: weight of a batch in the running statistics; None leaves timm's choice.

    Attributes:
        channels: of each returned stage.
        strides: of each returned stage, in input pixels.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (2, 3, 4),
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        bn_momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.body = timm.create_model(
            name,
            features_only=True,
            out_indices=tuple(out_indices),
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
        )
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        if bn_momentum is not None:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = bn_momentum
        self.train()

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Activations work in place in evaluation only: in training autograd would copy their input first."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = not mode
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, channels[i], H / strides[i], W / strides[i]) per stage, finest first."""
        return self.body(images)
