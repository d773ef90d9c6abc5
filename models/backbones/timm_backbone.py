"""Any image classifier of timm as a feature pyramid's backbone."""

from collections.abc import Sequence

import timm
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from models.layers import silu


class NormAct(nn.Module):
    """What timm fuses into a `BatchNormAct2d`, as a batch normalisation and an activation of their own.

    torch's conversion to synchronised batch normalisation, which Lightning calls, puts a `SyncBatchNorm` in the place
    of any kind of batch normalisation and would lose timm's fused activation without a word.
    """

    def __init__(self, fused: BatchNormAct2d, momentum: float | None) -> None:
        super().__init__()
        momentum = fused.momentum if momentum is None else momentum
        self.bn = nn.BatchNorm2d(fused.num_features, eps=fused.eps, momentum=momentum)
        self.bn.load_state_dict(fused.state_dict())
        self.drop = fused.drop
        self.act = fused.act

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.drop(self.bn(x))
        return silu(x) if isinstance(self.act, nn.SiLU) else self.act(x)


class TimmBackbone(nn.Module):
    """A timm classifier cut into stages.

    Args:
        name: a model of timm. The `tf_` EfficientNets pad as TensorFlow does and have its BN epsilon.
        out_indices: stages to return; for EfficientNets 2, 3, 4 are the last features at strides 8, 16, 32.
        pretrained: load timm's ImageNet weights (downloaded once).
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        bn_momentum: weight of a batch in the running statistics; None leaves timm's choice.
        output_stride: stride beyond which kernels dilate in place of striding, where timm's model can (8 or 16, for
            segmentation); None leaves the model as it is.

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
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.body = timm.create_model(
            name,
            features_only=True,
            out_indices=tuple(out_indices),
            pretrained=pretrained,
            **({} if output_stride is None else {"output_stride": output_stride}),
            **({"drop_path_rate": drop_path_rate} if drop_path_rate else {}),  # not known to all of timm's models
        )
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        for module in list(self.modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, BatchNormAct2d):
                    setattr(module, child_name, NormAct(child, bn_momentum))
                elif isinstance(child, nn.BatchNorm2d) and bn_momentum is not None:
                    child.momentum = bn_momentum

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, channels[i], H / strides[i], W / strides[i]) per stage, finest first."""
        return self.body(images)
