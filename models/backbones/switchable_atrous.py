"""Switchable atrous convolution (Qiao, Chen, Yuille: "DetectoRS", CVPR 2021, section 4)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from errors import UserError

DILATION = 3  # of the second look, in multiples of the first


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters are standardised and brought back to the mean and deviation they started with.

    (The authors' `ConvAWS2d`.) Training moves the pattern of a filter but not its scale. At the start it is the
    convolution it was made of.

    Args:
        conv: without a bias, and with zeros as padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=False,
            device=conv.weight.device,
        )
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=conv.weight.requires_grad)
        mean, deviation = self._moments()
        self.register_buffer("weight_mean", mean.detach().clone())
        self.register_buffer("weight_deviation", deviation.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        return self._conv_forward(x, self.standardised(), None)

    def standardised(self) -> Tensor:
        """The weight that convolves."""
        mean, deviation = self._moments()
        return torch.addcmul(self.weight_mean, self.weight_deviation, (self.weight - mean) / deviation)

    def _moments(self) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return mean, (variance + 1e-5).sqrt()


class SwitchableAtrousConv(StandardisedConv):
    """A 3 x 3 convolution that looks twice, near and three times as far, and mixes by a switch for every place.

    y = S(x) conv(x, w, dilation 1) + (1 - S(x)) conv(x, w + dw, dilation 3), where S is a 1 x 1 convolution of the
    5 x 5 means. A global context is added before and after. The switch starts at 1 and everything else that is new at
    0, so that at the start this is the convolution it was made of.

    Args:
        conv: 3 x 3, as for `StandardisedConv`.
        deformable: let both looks move their samples (Dai et al.: "Deformable Convolutional Networks", ICCV 2017).
    """

    def __init__(self, conv: nn.Conv2d, *, deformable: bool = False) -> None:
        super().__init__(conv)
        device = conv.weight.device
        self.weight_difference = nn.Parameter(torch.zeros_like(self.weight))
        self.switch = nn.Conv2d(conv.in_channels, 1, 1, stride=conv.stride, device=device)
        self.before = nn.Conv2d(conv.in_channels, conv.in_channels, 1, device=device)
        self.after = nn.Conv2d(conv.out_channels, conv.out_channels, 1, device=device)
        taps = conv.kernel_size[0] * conv.kernel_size[1]
        self.offsets = nn.ModuleList(
            nn.Conv2d(conv.in_channels, 2 * taps, 3, stride=conv.stride, padding=1, device=device)
            for _ in range(2 if deformable else 0)
        )
        for layer in (self.switch, self.before, self.after, *self.offsets):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.ones_(self.switch.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W').

        Raises:
            UserError: H or W is below 3, too little for the mirrored border of the means.
        """
        if min(x.shape[-2:]) < 3:
            raise UserError(
                f"a feature of {x.shape[-2]} x {x.shape[-1]} cells is too small for a switchable atrous convolution: "
                "give larger pictures, or leave the coarsest stage out of switchable_stages"
            )
        x = x + self.before(x.mean((2, 3), keepdim=True))
        means = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
        switch = self.switch(means)
        weight = self.standardised()
        near = self._look(x, weight, 1, means)
        far = self._look(x, weight + self.weight_difference, DILATION, means)
        y = switch * near + (1 - switch) * far
        return y + self.after(y.mean((2, 3), keepdim=True))

    def _look(self, x: Tensor, weight: Tensor, factor: int, means: Tensor) -> Tensor:
        padding = tuple(factor * p for p in self.padding)
        dilation = tuple(factor * d for d in self.dilation)
        if not self.offsets:
            return F.conv2d(x, weight, None, self.stride, padding, dilation, self.groups)
        offset = self.offsets[factor != 1](means)
        return deform_conv2d(x, offset, weight, stride=self.stride, padding=padding, dilation=dilation)


def standardise_convs(module: nn.Module) -> None:
    """Make every convolution in `module` a `StandardisedConv`, in place; those that are already, stay."""
    _replace(module, StandardisedConv)


def switch_convs(module: nn.Module, *, deformable: bool = False) -> None:
    """Make every 3 x 3 convolution in `module` a `SwitchableAtrousConv`, in place."""
    _replace(module, lambda conv: SwitchableAtrousConv(conv, deformable=deformable), kernel_size=(3, 3))


def _replace(
    module: nn.Module, make: Callable[[nn.Conv2d], nn.Conv2d], kernel_size: tuple[int, int] | None = None
) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, StandardisedConv):
            continue
        if isinstance(child, nn.Conv2d) and kernel_size in (None, child.kernel_size):
            setattr(module, name, make(child))
        else:
            _replace(child, make, kernel_size)
