"""Darknet-19, Darknet-53 and YOLOv1's backbone: the numbers of the authors' program, and the blocks by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones.darknet import (
    Darknet19,
    Darknet53,
    DarknetClassifier,
    DarknetConv,
    Residual,
    YOLOv1Backbone,
    scaled,
)
from tools.model_table import count_macs


# Parameters and billions of operations (two per multiply-accumulate) that darknet prints for its cfg files.
@pytest.mark.parametrize(
    ("backbone", "parameters", "size", "operations"),
    [(Darknet19, 20_842_376, 224, 5.58), (Darknet53, 41_609_928, 256, 18.70)],
)
def test_published_sizes(backbone, parameters, size, operations):
    with torch.device("meta"):
        network = DarknetClassifier(backbone())
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert 2 * count_macs(network, size) / 1e9 == pytest.approx(operations, abs=0.02)


def test_number_of_convolutions():
    with torch.device("meta"):
        networks = [Darknet19(), Darknet53(), YOLOv1Backbone()]
    assert [sum(isinstance(m, nn.Conv2d) for m in n.modules()) for n in networks] == [18, 52, 24]


@pytest.mark.parametrize(
    ("build", "channels", "strides"),
    [
        (Darknet19, [256, 512, 1024], [8, 16, 32]),
        (Darknet53, [256, 512, 1024], [8, 16, 32]),
        (YOLOv1Backbone, [1024], [64]),
    ],
)
def test_features_are_as_declared(build, channels, strides):
    with torch.device("meta"):
        assert build().channels == channels
    network = build(width=1 / 16).eval()
    features = network(torch.randn(2, 3, 64, 128))
    assert network.strides == strides
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 128 // s) for c, s in zip(network.channels, strides, strict=True)
    ]
    assert network.channels == [c // 16 for c in channels]


def test_last_features_only():
    assert Darknet53(num_features=2, width=1 / 32).strides == [16, 32]


def test_conv_block():
    block = DarknetConv(1, 1, 1).eval()
    block.load_state_dict(
        {
            "conv.weight": torch.tensor([[[[2.0]]]]),
            "bn.weight": torch.tensor([3.0]),
            "bn.bias": torch.tensor([1.0]),
            "bn.running_mean": torch.tensor([4.0]),
            "bn.running_var": torch.tensor([0.25]),
            "bn.num_batches_tracked": torch.tensor(0),
        }
    )
    # 3 * (2x - 4) / .5 + 1: -23 for x = 0, 13 for x = 3; the leaky slope is a tenth.
    torch.testing.assert_close(
        block(torch.tensor([[[[0.0, 3.0]]]])), torch.tensor([[[[-2.3, 13.0]]]]), rtol=1e-4, atol=0
    )


def test_conv_without_normalisation_has_a_bias():
    block = DarknetConv(2, 3, 3, batch_norm=False)
    assert block.bn is None
    assert torch.equal(block.conv.bias, torch.zeros(3))
    x = torch.randn(1, 2, 4, 4)
    expected = F.leaky_relu(F.conv2d(x, block.conv.weight, padding=1), 0.1)
    torch.testing.assert_close(block(x), expected)


def test_residual_adds_without_a_relu():
    block = Residual(4).eval()
    nn.init.zeros_(block.expand.conv.weight)
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(block(x), x)


def test_running_statistics_move_by_a_hundredth():
    block = DarknetConv(1, 1, 1)
    nn.init.ones_(block.conv.weight)
    block(torch.full((1, 1, 2, 2), 5.0))
    torch.testing.assert_close(block.bn.running_mean, torch.tensor([0.05]))


@pytest.mark.parametrize(("channels", "width", "expected"), [(64, 1, 64), (255, 1, 255), (64, 0.25, 16), (32, 0.1, 8)])
def test_scaled(channels, width, expected):
    assert scaled(channels, width) == expected


def test_classifier_averages_over_places():
    network = DarknetClassifier(Darknet19(width=1 / 32), num_classes=5).eval()
    assert network(torch.randn(2, 3, 64, 96)).shape == (2, 5)
