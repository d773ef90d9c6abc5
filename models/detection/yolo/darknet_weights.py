"""Darknet's `.weights` files: the numbers of a network, layer after layer, without names or shapes.

A file begins with three 32-bit integers (major, minor and revision of the format) and the number of images seen in
training, of 64 bits from version 0.2 on and of 32 before. All other numbers are 32-bit floats, little-endian, in the
order of the network's configuration (`src/parser.c` of darknet). Per layer:

- convolution: biases, or with batch normalisation its shifts, scales, means and variances; then the kernels;
- locally connected: biases, kernels of one place after the other;
- fully connected: biases, weights (a matrix of outputs x inputs; where major or minor exceeds 1000, inputs x outputs).

The networks here register their layers in that order. Files of the authors: `yolov3.weights`, `yolov2.weights`,
`yolov1.weights` for detectors, `darknet19.weights`, `darknet53.weights` for classifiers, and their first layers,
`darknet53.conv.74` and the like, for backbones.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from errors import UserError
from models.backbones.darknet import DarknetConv
from models.detection.yolo.yolo_head import PriorPrediction
from models.detection.yolo.yolo_v1_head import GridPrediction, LocallyConnected


class Header(NamedTuple):
    """What a file says of itself."""

    major: int
    minor: int
    revision: int
    seen: int  # images
    size: int  # of the header, in bytes

    @property
    def transposed(self) -> bool:
        """Weights of fully connected layers are stored as (inputs, outputs)."""
        return self.major > 1000 or self.minor > 1000


class Block(NamedTuple):
    """Consecutive numbers of a file: one tensor of the network, or one layer that is two here."""

    names: tuple[str, ...]  # of the tensors in the state dict; two are stacked, boxes and then classes
    shape: tuple[int, ...]  # of the block
    rows: Tensor | None = None  # position in the stack of every row of the file
    matrix: bool = False  # of a fully connected layer


def read_darknet(network: nn.Module, path: str | os.PathLike) -> tuple[dict[str, Tensor], int | None]:
    """The state dict of a darknet file, in the names of a network of ours.

    Args:
        network: a YOLO detector, a `DarknetClassifier` or one of their backbones. Its number of classes need not be the
            file's: it follows from the length of the file. Never changed.
        path: file.

    Returns:
        The state dict (float32), complete but for counters of batch normalisation, which are taken from the network;
        `images_seen`, where the network counts images, is the file's. The number of classes of the file, None if the
        network has no layer that predicts classes of objects.

    Raises:
        UserError: the file cannot be read, or is too short or too long for the network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of weights at {path}: correct the path")
    data = path.read_bytes()
    header = _read_header(data, path)
    numbers = np.frombuffer(data, "<f4", count=(len(data) - header.size) // 4, offset=header.size)
    num_classes = _find_num_classes(network, len(numbers), (len(data) - header.size) % 4, path)

    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if "images_seen" in state:
        state["images_seen"].fill_(header.seen)
    place = 0
    for block in _blocks(network, num_classes):
        count = int(np.prod(block.shape))
        values = torch.from_numpy(numbers[place : place + count].copy())
        place += count
        if block.matrix and header.transposed:
            values = values.view(block.shape[::-1]).T.contiguous()
        values = values.view(block.shape)
        if block.rows is None:
            state[block.names[0]] = values
            continue
        stack = torch.empty_like(values)
        stack[block.rows] = values
        boxes = len(state[block.names[0]])
        state[block.names[0]], state[block.names[1]] = stack[:boxes].clone(), stack[boxes:].clone()
    return state, num_classes


def write_darknet(network: nn.Module, path: str | os.PathLike, *, seen: int = 0) -> None:
    """Write a network as a darknet file of version 0.2.

    Args:
        network: see `read_darknet`.
        path: file, replaced if there is one.
        seen: images of training, for the header; darknet's YOLOv2 warms up below 12,800.
    """
    state = network.state_dict()
    with Path(path).open("wb") as file:
        file.write(np.array([0, 2, 0], "<i4").tobytes() + np.array([seen], "<u8").tobytes())
        for block in _blocks(network, getattr(network, "num_classes", None)):
            values = torch.cat([state[name].detach().cpu().float() for name in block.names])
            if block.rows is not None:
                values = values[block.rows]
            file.write(values.contiguous().numpy().astype("<f4").tobytes())


def _read_header(data: bytes, path: Path) -> Header:
    if len(data) < 16:
        raise UserError(f"{path} is no darknet file, it has only {len(data)} bytes: download it again")
    major, minor, revision = (int(value) for value in np.frombuffer(data, "<i4", 3))
    wide = major * 10 + minor >= 2 and major < 1000 and minor < 1000
    size = 20 if wide else 16
    if len(data) < size:
        raise UserError(f"{path} is no darknet file, it has only {len(data)} bytes: download it again")
    return Header(major, minor, revision, int(np.frombuffer(data, "<u8" if wide else "<u4", 1, 12)[0]), size)


def _find_num_classes(network: nn.Module, numbers: int, rest: int, path: Path) -> int | None:
    """The number of classes with which the network has as many numbers as the file."""
    if rest:
        raise UserError(f"{path} is damaged, it ends within a number: download it again")
    fixed = _size(network, 0)
    per_class = _size(network, 1) - fixed
    kind = type(network).__name__
    if per_class == 0:
        if numbers != fixed:
            raise UserError(
                f"{path} is too {'short' if numbers < fixed else 'long'} for {kind}, it holds {numbers:,} numbers and "
                f"should hold {fixed:,}: choose the network and width that it belongs to"
            )
        return None
    num_classes, rest = divmod(numbers - fixed, per_class)
    if rest or num_classes < 1:
        own = _size(network, network.num_classes)
        raise UserError(
            f"{path} is too {'short' if numbers < own else 'long'} for {kind} with {network.num_classes} classes, it "
            f"holds {numbers:,} numbers and should hold {own:,} (or, for other classes, {fixed:,} and {per_class:,} "
            f"for each): choose the network and variant that it belongs to, or download it again"
        )
    return num_classes


def _size(network: nn.Module, num_classes: int) -> int:
    return sum(int(np.prod(block.shape)) for block in _blocks(network, num_classes))


def _blocks(network: nn.Module, num_classes: int | None) -> Iterator[Block]:
    """All blocks of a network's file, in order, for a number of classes of objects."""
    inside: list[str] = []  # prefixes of layers whose parts have been taken along
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        layer = next((blocks for kind, blocks in _LAYERS.items() if isinstance(module, kind)), None)
        if layer is not None and not any(prefix.startswith(outer) for outer in inside):
            inside.append(prefix)
            yield from layer(prefix, module, num_classes)


def _conv_block(prefix: str, layer: DarknetConv, num_classes: int | None) -> Iterator[Block]:
    channels = (layer.conv.out_channels,)
    if layer.bn is None:
        yield Block((f"{prefix}conv.bias",), channels)
    else:
        for part in ("bias", "weight", "running_mean", "running_var"):
            yield Block((f"{prefix}bn.{part}",), channels)
    yield Block((f"{prefix}conv.weight",), tuple(layer.conv.weight.shape))


def _plain(prefix: str, layer: nn.Conv2d | nn.Linear | LocallyConnected, num_classes: int | None) -> Iterator[Block]:
    yield Block((f"{prefix}bias",), tuple(layer.bias.shape))
    yield Block((f"{prefix}weight",), tuple(layer.weight.shape), matrix=isinstance(layer, nn.Linear))


def _prediction(prefix: str, layer: PriorPrediction | GridPrediction, num_classes: int) -> Iterator[Block]:
    rows = layer.darknet_rows(num_classes)
    for part in ("bias", "weight"):
        yield Block(
            (f"{prefix}boxes.{part}", f"{prefix}classes.{part}"),
            (len(rows), *getattr(layer.boxes, part).shape[1:]),
            rows,
            matrix=part == "weight" and isinstance(layer.boxes, nn.Linear),
        )


_LAYERS: dict[type[nn.Module], Callable[..., Iterator[Block]]] = {
    DarknetConv: _conv_block,
    PriorPrediction: _prediction,
    GridPrediction: _prediction,
    LocallyConnected: _plain,
    nn.Conv2d: _plain,
    nn.Linear: _plain,
}
