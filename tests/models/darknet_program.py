"""A small darknet: runs a network as its cfg file describes it, on the numbers of a weights file in their order."""

import numpy as np
import torch
import torch.nn.functional as F


class Numbers:
    """The numbers of a file, taken from the front."""

    def __init__(self, path, header=20):
        self.values = torch.from_numpy(np.fromfile(path, "<f4", offset=header))
        self.place = 0

    def take(self, *shape):
        count = int(np.prod(shape))
        self.place += count
        return self.values[self.place - count : self.place].view(shape)


def run(cfg, numbers, x):
    """Outputs of all layers.

    Layers: ("conv", filters, size, stride) with normalisation and leaky ReLU, ("linear", filters) 1 x 1 with biases,
    ("max",), ("up",), ("shortcut", from), ("route", layers...), ("reorg",), ("local", filters), ("connected", outputs).
    """
    outputs = []
    for kind, *options in cfg:
        channels = x.shape[1]
        if kind == "conv":
            filters, size, stride = options
            shift, scale, mean, variance = (numbers.take(filters) for _ in range(4))
            x = F.conv2d(x, numbers.take(filters, channels, size, size), stride=stride, padding=size // 2)
            x = F.leaky_relu(F.batch_norm(x, mean, variance, scale, shift, eps=1e-5), 0.1)
        elif kind == "linear":
            bias = numbers.take(options[0])
            x = F.conv2d(x, numbers.take(options[0], channels, 1, 1), bias)
        elif kind == "max":
            x = F.max_pool2d(x, 2)
        elif kind == "up":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        elif kind == "shortcut":
            x = x + outputs[options[0]]
        elif kind == "route":
            x = torch.cat([outputs[layer] for layer in options], 1)
        elif kind == "reorg":
            x = torch.stack([reorg(image) for image in x])
        elif kind == "local":
            side = x.shape[2]
            bias = numbers.take(options[0], side, side)
            kernels = numbers.take(side, side, options[0], channels, 3, 3)
            padded = F.pad(x, (1, 1, 1, 1))
            place = [
                torch.einsum("bcij,fcij->bf", padded[..., row : row + 3, column : column + 3], kernels[row, column])
                for row in range(side)
                for column in range(side)
            ]
            x = F.leaky_relu(torch.stack(place, -1).view(len(x), -1, side, side) + bias, 0.1)
        elif kind == "connected":
            bias = numbers.take(options[0])
            x = x.flatten(1) @ numbers.take(options[0], x[0].numel()).T + bias
        outputs.append(x)
    return outputs


def reorg(x):
    """The loop of darknet's reorg layer, stride 2, over one image's numbers: (C, H, W) -> (4 C, H / 2, W / 2)."""
    channels, height, width = x.shape
    flat = x.flatten().tolist()
    out = [0.0] * len(flat)
    quarter = channels // 4
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                column = i * 2 + (k // quarter) % 2
                row = j * 2 + (k // quarter) // 2
                source = column + width * 2 * (row + height * 2 * (k % quarter))
                out[i + width * (j + height * k)] = flat[source]
    return torch.tensor(out).view(4 * channels, height // 2, width // 2)


def darknet53(divide):
    """`cfg/darknet53.cfg` without the classifier, filters divided."""
    cfg = [("conv", 32 // divide, 3, 1)]
    for filters, blocks in zip((64, 128, 256, 512, 1024), (1, 2, 8, 8, 4), strict=True):
        wide = filters // divide
        cfg += [("conv", wide, 3, 2)]
        cfg += [("conv", wide // 2, 1, 1), ("conv", wide, 3, 1), ("shortcut", -3)] * blocks
    return cfg


def yolo_v3(divide, num_classes):
    """`cfg/yolov3.cfg`; the predictions are the layers of kind "linear"."""

    def level(filters):
        turns = [("conv", filters // divide, 1, 1), ("conv", 2 * filters // divide, 3, 1)] * 3
        return [*turns, ("linear", 3 * (5 + num_classes))]

    cfg = [*darknet53(divide), *level(512), ("detection",)]
    cfg += [("route", -4), ("conv", 256 // divide, 1, 1), ("up",), ("route", -1, 61), *level(256), ("detection",)]
    return [
        *cfg,
        *[("route", -4), ("conv", 128 // divide, 1, 1), ("up",), ("route", -1, 36), *level(128), ("detection",)],
    ]


def darknet19(divide):
    """`cfg/darknet19.cfg` without the classifier."""
    stages = [[32], [64], [128, 64, 128], [256, 128, 256], [512, 256, 512, 256, 512], [1024, 512, 1024, 512, 1024]]
    cfg = []
    for stage in stages:
        cfg += [("max",)] if cfg else []
        cfg += [("conv", filters // divide, 1 if i % 2 else 3, 1) for i, filters in enumerate(stage)]
    return cfg


def yolo_v2(divide, num_classes, priors=5):
    """`cfg/yolov2.cfg`."""
    wide = ("conv", 1024 // divide, 3, 1)
    cfg = [*darknet19(divide), wide, wide, ("route", -9), ("conv", 64 // divide, 1, 1), ("reorg",), ("route", -1, -4)]
    return [*cfg, wide, ("linear", priors * (5 + num_classes))]


def yolo_v1(divide, outputs):
    """`cfg/yolov1.cfg`."""
    stages = [
        [(64, 7, 2)],
        [(192, 3, 1)],
        [(128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)],
        [*[(256, 1, 1), (512, 3, 1)] * 4, (512, 1, 1), (1024, 3, 1)],
        [*[(512, 1, 1), (1024, 3, 1)] * 2, (1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)],
    ]
    cfg = []
    for stage in stages:
        cfg += [("max",)] if cfg else []
        cfg += [("conv", filters // divide, size, stride) for filters, size, stride in stage]
    return [*cfg, ("local", 256 // divide), ("connected", outputs)]


def yolo_v1_tiny(divide, outputs):
    """`cfg/yolov1-tiny.cfg`."""
    cfg = []
    for filters in (16, 32, 64, 128, 256, 512):
        cfg += [("conv", filters // divide, 3, 1), ("max",)]
    return [*cfg, ("conv", 1024 // divide, 3, 1), ("conv", 256 // divide, 3, 1), ("connected", outputs)]
