import pytest
import torch
import torchvision
from torch import nn

from errors import UserError
from models.backbones.classic import VGG16, ZF5, AlexNet, CaffeNet, LocalNormalisation, scaled
from models.detection.regions.classic_heads import AlexNetHead, LowRankLinear
from models.detection.roi.box_heads import VGGHead


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_parameters_are_those_of_the_published_classifiers():
    with torch.device("meta"):
        classifier = nn.Linear(4096, 1000)
        assert count(AlexNet(), AlexNetHead(256, 6), classifier) == 61_100_840  # torchvision's
        assert count(CaffeNet(), AlexNetHead(256, 6), classifier) == 60_965_224  # Caffe's reference model
        assert count(VGG16(), VGGHead(512, 7), classifier) == 138_357_544
        assert count(ZF5()) == 96 * 148 + 256 * 2401 + 384 * 2305 + 384 * 3457 + 256 * 3457  # SPPNet, table 1


def test_features_are_torchvisions():
    torch.manual_seed(0)
    narrow = [2, 2, "M", 4, 4, "M", 8, 8, 8, "M", 16, 16, 16, "M", 16, 16, 16, "M"]  # 1/32 of configuration D
    for own, peer in (
        (AlexNet(), torchvision.models.alexnet(weights=None).features),
        (VGG16(width=1 / 32), torchvision.models.vgg.make_layers(narrow)),
    ):
        own.features.load_state_dict(peer.state_dict())
        images = torch.randn(1, 3, 100, 120)
        with torch.no_grad():
            torch.testing.assert_close(own.pool5(own(images)[0]), peer(images))


@pytest.mark.parametrize(("kind", "cells"), [(AlexNet, 6), (CaffeNet, 6), (ZF5, 7), (VGG16, 7)])
def test_the_side_of_pool5_is_what_comes_out(kind, cells):
    network = kind(width=0.02)
    assert network.pooled_side(227) == cells
    for side in (99, 130, 227):
        pooled = network.pool5(network(torch.zeros(1, 3, side, side))[0])
        assert pooled.shape == (1, network.channels[0], network.pooled_side(side), network.pooled_side(side))
    with pytest.raises(UserError, match=f"5 x 5 pixels is too small for {kind.__name__}"):
        network.pooled_side(5)


@pytest.mark.parametrize("kind", [AlexNet, CaffeNet, ZF5, VGG16])
def test_offset_and_stride_say_where_a_cell_lies(kind):
    network = kind(width=0.02)
    images = torch.zeros(1, 3, 400, 400, requires_grad=True)
    for layer in network.features:  # the whole field of view counts alike
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    x = images + 1
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):  # the maximum has one winner, the mean has none
            x = nn.functional.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding)
        elif not isinstance(layer, LocalNormalisation):
            x = layer(x.clone())
    x[0, 0, 12, 13].backward()
    seen = images.grad[0, 0].double()
    columns = torch.arange(400).double()
    centre = network.offset + torch.tensor([13.0, 12.0]) * network.strides[0]
    assert (seen.sum(0) @ columns / seen.sum()).item() == pytest.approx(centre[0].item(), abs=1e-3)
    assert (seen.sum(1) @ columns / seen.sum()).item() == pytest.approx(centre[1].item(), abs=1e-3)


@pytest.mark.parametrize(("size", "alpha"), [(3, 5e-5), (5, 1.0)])
def test_local_normalisation_is_torchs(size, alpha):
    x = 3 * torch.randn(2, 7, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    found, want = LocalNormalisation(size, alpha)(x), nn.LocalResponseNorm(size, alpha)(x)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, want)))


def test_convolutions_are_frozen_from_the_first():
    network = VGG16(width=0.02, frozen_convs=4)
    convs = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert [conv.weight.requires_grad for conv in convs] == [False] * 4 + [True] * 9


def test_a_narrow_network_keeps_its_groups():
    assert scaled(256, 0.1) == 26 and scaled(96, 0.001) == 2 and scaled(96, 1.0) == 96
    assert CaffeNet(width=0.01)(torch.zeros(1, 3, 67, 67))[0].shape[1] == 2


@pytest.mark.parametrize("network", [lambda: ZF5(pretrained=True), lambda: VGG16(width=0.5, pretrained=True)])
def test_weights_that_nobody_has_are_refused(network):
    with pytest.raises(UserError, match="no pretrained weights"):
        network()


def test_svd_of_full_rank_is_the_layer_itself():
    torch.manual_seed(0)
    for inputs, outputs in ((12, 7), (7, 12)):
        layer = nn.Linear(inputs, outputs)
        x = torch.randn(5, inputs)
        torch.testing.assert_close(LowRankLinear.of(layer, 7)(x), layer(x), atol=1e-5, rtol=1e-5)


def test_truncated_svd_is_the_best_approximation():
    torch.manual_seed(0)
    layer = nn.Linear(30, 20)
    low = LowRankLinear.of(layer, 4)
    product = low.second.weight @ low.first.weight
    values = torch.linalg.svdvals(layer.weight)
    # Eckart and Young: what is lost are the other singular values.
    torch.testing.assert_close((layer.weight - product).norm(), values[4:].norm())
    assert low.first.bias is None and torch.equal(low.second.bias, layer.bias)
    assert count(low) == 4 * (20 + 30) + 20


def test_weights_of_a_full_layer_are_factorised_when_loaded_and_own_weights_are_not():
    torch.manual_seed(0)
    layer, low = nn.Linear(9, 6), nn.Sequential(LowRankLinear(9, 6, 3))
    low.load_state_dict({f"0.{key}": value for key, value in layer.state_dict().items()})
    torch.testing.assert_close(low(torch.ones(1, 9)), LowRankLinear.of(layer, 3)(torch.ones(1, 9)))
    again = nn.Sequential(LowRankLinear(9, 6, 3))
    again.load_state_dict(low.state_dict())
    assert torch.equal(again(torch.ones(1, 9)), low(torch.ones(1, 9)))


@pytest.mark.parametrize(
    ("head", "name", "channels", "size"), [(AlexNetHead, "alexnet", 256, 6), (VGGHead, "vgg16", 512, 7)]
)
def test_pretrained_heads_are_the_classifiers_layers(monkeypatch, head, name, channels, size):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    monkeypatch.setattr(torchvision.models, "get_model", lambda wanted, weights: {name: theirs}[wanted])
    ours = head(channels, size, pretrained=True).eval()
    x = torch.rand(2, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.classifier[:-1](x.flatten(1)))
