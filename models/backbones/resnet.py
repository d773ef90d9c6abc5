"""Residual networks of torchvision as a detector's backbone (He et al.: "Deep Residual Learning ...", CVPR 2016)."""

from collections.abc import Sequence
from typing import Literal

import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from errors import UserError


class ResNet(nn.Module):
    """A ResNet of torchvision (also ResNeXt and Wide ResNet) cut into stages, named as torchvision's detectors do.

    Detectors are usually trained with few pictures per device from ImageNet's weights: they keep that training's
    statistics and scales of batch normalisation and the filters of the first stages. From random weights there is
    nothing to keep: take `norm="batch"` and `frozen_stages=0`.

    Args:
        name: `resnet18` to `resnet152`, `resnext50_32x4d`, `wide_resnet50_2` and so on.
        out_indices: stages to return: 1 is C2 at stride 4, 2, 3, 4 are C3 to C5. Stages after the last are left out.
        pretrained: load torchvision's best ImageNet weights (downloaded once).
        frozen_stages: how many stages are not trained: 1 is the stem alone, 2 stem and C2, 5 everything. Their batch
            normalisation is frozen too.
        norm: `frozen` makes all batch normalisation a fixed affine map, `batch` trains it.
        norm_eps: added to the variance; torchvision's detectors with `COCO_V1` weights were trained with 0.

    Attributes:
        channels: of each returned stage.
        strides: of each returned stage, in input pixels.

    Raises:
        UserError: torchvision has no such ResNet.
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        out_indices: Sequence[int] = (2, 3, 4),
        pretrained: bool = False,
        frozen_stages: int = 2,
        norm: Literal["frozen", "batch"] = "frozen",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        try:
            body = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        except ValueError as error:
            raise UserError(f"torchvision has no network {name!r}: choose resnet18, resnet50 or another") from error
        if not isinstance(body, torchvision.models.ResNet):
            raise UserError(f"{name!r} is no ResNet: choose resnet18, resnet50 or another of that family")
        self.out_indices = tuple(out_indices)
        self.channels = [body.fc.in_features >> (4 - i) for i in self.out_indices]
        self.strides = [2 ** (i + 1) for i in self.out_indices]
        del body.avgpool, body.fc
        for i in range(max(self.out_indices) + 1, 5):
            delattr(body, f"layer{i}")
        stages = [[body.conv1, body.bn1], *([layer] for layer in self._layers(body))]
        for stage in stages[:frozen_stages]:
            for module in stage:
                module.requires_grad_(False)
        self.body = body
        freeze_norms(body, only_fixed=norm == "batch")
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.eps = norm_eps

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, channels[i], H / strides[i], W / strides[i]) per stage, finest first."""
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        features = []
        for i, layer in enumerate(self._layers(body), 1):
            x = layer(x)
            if i in self.out_indices:
                features.append(x)
        return features

    def _layers(self, body: nn.Module) -> list[nn.Module]:
        return [getattr(body, f"layer{i}") for i in range(1, max(self.out_indices) + 1)]


def freeze_norms(module: nn.Module, *, only_fixed: bool = False) -> None:
    """Replace batch normalisation by the fixed affine map that it is at this moment, in place.

    Args:
        module: what is searched for `BatchNorm2d`.
        only_fixed: replace only those whose parameters are already set not to be trained.
    """
    for child_name, child in list(module.named_children()):
        if not isinstance(child, nn.BatchNorm2d):
            freeze_norms(child, only_fixed=only_fixed)
        elif not (only_fixed and child.weight.requires_grad):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, child_name, frozen)
