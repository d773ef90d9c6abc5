"""Fully convolutional networks (Long, Shelhamer, Darrell, CVPR 2015 and PAMI 2017): FCN-32s, 16s, 8s, 8s at once."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.segmentation.fcn_backbones import VGG16, FullyConvolutional
from models.segmentation.geometry import Grid, crop_offset
from models.segmentation.losses import PixelLoss
from models.segmentation.segmenter import Segmenter

AT_ONCE_SCALES = (1.0, 1e-2, 1e-4)  # of fc7, pool4 and pool3 before they are scored (reference release)

# Of VGG16 for 21 classes, by stride and whether at once: parameters, the bilinear kernels counted as Caffe does, and
# the mean IoU on VOC 2011's seg11valid that the authors report.
PUBLISHED = {
    (32, False): {"parameters": 136_152_917, "seg11valid mIoU": 59.4},
    (16, False): {"parameters": 134_815_994, "seg11valid mIoU": 62.4},
    (8, False): {"parameters": 134_489_759, "seg11valid mIoU": 62.7},
    (8, True): {"parameters": 134_489_759, "seg11valid mIoU": 65.4},
}


class BilinearUpsampling(nn.ConvTranspose2d):
    """A transposed convolution that begins as bilinear interpolation of every channel by itself (section 3.3).

    Its kernel is a dense (K, K, k, k) one, of which only the diagonal of channels is not zero, as in the reference
    release; `learn` lets it be trained, which the authors found to make no significant difference.
    """

    def __init__(self, channels: int, kernel: int, stride: int, *, learn: bool) -> None:
        super().__init__(channels, channels, kernel, stride=stride, bias=False)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(channels), range(channels)] = bilinear_kernel(kernel)
        self.weight.requires_grad_(learn)

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """(B, K, h, w) -> (B, K, (h - 1) * stride + k, (w - 1) * stride + k)."""
        if self.weight.requires_grad:
            return super().forward(x, output_size)
        diagonal = self.weight.diagonal(dim1=0, dim2=1).permute(2, 0, 1)[:, None]  # (K, 1, k, k): no zeros multiplied
        return F.conv_transpose2d(x, diagonal, stride=self.stride, groups=x.shape[1])


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) weights of bilinear interpolation by a factor of (size + 1) // 2."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size) - centre).abs() / factor
    return line[:, None] * line


class FCN(Segmenter):
    """A fully convolutional classifier, scored at one to three strides; scores are upsampled, cropped and added.

    The score layers begin at zero, so that a finer skip begins by adding nothing: FCN-16s is trained from FCN-32s's
    weights (`weights` of the LightningModule) and FCN-8s from FCN-16s's; `at_once` trains all three together.

    Args:
        num_classes: K, the background counted.
        backbone: VGG16, AlexNet, CaffeNet or GoogLeNet.
        stride: 32, 16 or 8: the finest features that are scored.
        at_once: scale the skips' features by 0.01 (stride 16) and 0.0001 (stride 8), for training without stages.
        learn_upsampling: train the transposed convolutions; frozen in the reference release.
        losses: see `Segmenter`, like `mean`, `std` and `bgr`.

    Raises:
        UserError: another stride, or a backbone with too little padding.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: FullyConvolutional,
        stride: Literal[32, 16, 8] = 8,
        at_once: bool = False,
        learn_upsampling: bool = False,
        losses: Sequence[PixelLoss] | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        bgr: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, image_size=500, losses=losses, mean=mean, std=std, bgr=bgr)
        if stride not in (32, 16, 8):
            raise UserError(f"FCN has no stride {stride}: choose 32, 16 or 8")
        self.backbone = backbone
        self.stride = stride
        self.at_once = at_once
        strides = [s for s in (32, 16, 8) if s >= stride]
        self.scores = nn.ModuleDict(
            {f"stride{s}": _zero_conv(backbone.channels[_place(s)], num_classes) for s in strides}
        )
        self.upsampling = nn.ModuleDict()
        self.crops: list[tuple[int, int]] = []  # per skip, cells to crop of the upsampled scores and of the skip's
        grid = backbone.grids[-1]
        for s in strides[1:]:
            kernel, grid = _upsampled(grid, 2, backbone.grids[_place(s)])
            self.upsampling[f"to{s}"] = BilinearUpsampling(num_classes, kernel, 2, learn=learn_upsampling)
            skip = backbone.grids[_place(s)]
            # Skips reach further out into the padding than the scores that passed fc6: they are cropped (GoogLeNet,
            # which has no fc6, the other way round).
            inner = max(grid, skip, key=lambda g: g.start)
            self.crops.append((crop_offset(grid, inner), crop_offset(skip, inner)))
            grid = inner
        kernel, grid = _upsampled(grid, stride, Grid())
        if grid.start > 0:
            raise UserError(
                f"the scores of this FCN would begin {grid.start:g} pixels within the picture: enlarge its backbone's "
                f"padding by {grid.start:g} at least (the release has 100)"
            )
        self.upsampling["to1"] = BilinearUpsampling(num_classes, kernel, stride, learn=learn_upsampling)
        self.crops.append((crop_offset(grid, Grid()), 0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores at the input's size, whatever it is.

        Raises:
            UserError: the input is too small for the backbone's padding.
        """
        height, width = images.shape[-2:]
        try:
            features = self.backbone(images)
        except RuntimeError as error:
            if "too small" not in str(error) and "Kernel size" not in str(error):
                raise
            raise _too_small(height, width) from error
        scores: Tensor | None = None
        for i, (name, score) in enumerate(self.scores.items()):
            feature = features[-1 - i]
            skip = score(feature * AT_ONCE_SCALES[i] if self.at_once else feature)
            if scores is None:
                scores = skip
                continue
            upsampled = self.upsampling[f"to{name.removeprefix('stride')}"](scores)
            mine, its = self.crops[i - 1]
            h = min(upsampled.shape[2] - mine, skip.shape[2] - its)
            w = min(upsampled.shape[3] - mine, skip.shape[3] - its)
            scores = upsampled[:, :, mine : mine + h, mine : mine + w] + skip[:, :, its : its + h, its : its + w]
        full = self.upsampling["to1"](scores)
        offset = self.crops[-1][0]
        out = full[:, :, offset : offset + height, offset : offset + width]
        if out.shape[-2:] != images.shape[-2:]:
            raise _too_small(height, width)
        return {"out": out.contiguous()}

    @property
    def offsets(self) -> list[int]:
        """Cells cropped of each skip and of the final scores, as in Caffe's Crop layers; 5, 9, 31 for VGG16 at 8s."""
        return [mine + its for mine, its in self.crops]

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report of this network; nothing of a changed one."""
        backbone = self.backbone
        as_published = isinstance(backbone, VGG16) and backbone.width == 1 and not backbone.batch_norm
        return dict(PUBLISHED.get((self.stride, self.at_once), {})) if as_published and self.num_classes == 21 else {}

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        return [name for name, _ in self.named_parameters() if name.startswith("scores.")]


def _too_small(height: int, width: int) -> UserError:
    return UserError(
        f"an input of {height} x {width} pixels is too small for this FCN: enlarge its backbone's padding (100 suits "
        "every size)"
    )


def _upsampled(grid: Grid, factor: int, target: Grid) -> tuple[int, Grid]:
    """Kernel size and grid of an upsampling whose cells fall on those of `target`: 2 * factor, or one less."""
    for kernel in (2 * factor, 2 * factor - 1):
        fine = grid.up(kernel, factor)
        if (fine.start - target.start) % fine.stride == 0:
            return kernel, fine
    raise ValueError(f"no bilinear kernel brings {grid} onto {target}")


def _place(stride: int) -> int:
    return {8: 0, 16: 1, 32: 2}[stride]


def _zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
