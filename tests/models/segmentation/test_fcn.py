"""FCN against the numbers of the paper and of the reference release."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from errors import UserError
from models.segmentation import FCN
from models.segmentation.fcn import AT_ONCE_SCALES, BilinearUpsampling, bilinear_kernel
from models.segmentation.fcn_backbones import VGG16, AlexNet, CaffeNet, GoogLeNet
from models.segmentation.geometry import Grid, crop_offset

BACKBONES = {"vgg16": VGG16, "alexnet": AlexNet, "caffenet": CaffeNet, "googlenet": GoogLeNet}


def small(kind: str, **options) -> nn.Module:
    return GoogLeNet(**options) if kind == "googlenet" else BACKBONES[kind](width=1 / 32, **options)


@pytest.mark.parametrize(
    "stride, parameters, learnt, offsets, kernels",
    [
        (32, 136_152_917, 134_346_581, [19], [64]),
        (16, 134_815_994, 134_357_354, [5, 27], [4, 32]),
        (8, 134_489_759, 134_362_751, [5, 9, 31], [4, 4, 16]),
    ],
)
def test_vgg_counts_crops_and_kernels_are_those_of_the_release(stride, parameters, learnt, offsets, kernels):
    with torch.device("meta"):
        network = FCN(num_classes=21, backbone=VGG16(), stride=stride)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == learnt
    assert network.offsets == offsets
    assert [layer.kernel_size[0] for layer in network.upsampling.values()] == kernels


def test_alexnet_is_cropped_by_18_behind_a_kernel_of_63():
    for backbone in (AlexNet, CaffeNet):
        with torch.device("meta"):
            network = FCN(num_classes=21, backbone=backbone(), stride=32)
        assert network.offsets == [18]
        assert network.upsampling["to1"].kernel_size == (63, 63)


def test_caffenet_has_the_channels_and_groups_of_the_paper():
    with torch.device("meta"):
        convs = [m for m in CaffeNet().features if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [96, 256, 384, 384, 256]
    assert [m.groups for m in convs] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("kind", BACKBONES)
def test_output_has_the_size_of_the_input(kind, stride):
    network = FCN(num_classes=3, backbone=small(kind), stride=stride).eval()
    for size in ((1, 1), (33, 47), (96, 160)):
        with torch.no_grad():
            assert network(torch.randn(1, 3, *size))["out"].shape == (1, 3, *size)


def test_the_papers_input_keeps_its_size():
    network = FCN(num_classes=3, backbone=VGG16(width=1 / 32), stride=8).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 500, 375))["out"].shape == (1, 3, 500, 375)


@pytest.mark.parametrize("padding", [81, 90, 100, 117])
def test_other_paddings_shift_the_crop(padding):
    network = FCN(num_classes=1, backbone=VGG16(width=1 / 32, padding=padding), stride=32).eval()
    assert network.offsets == [19 + padding - 100]
    with torch.no_grad():
        assert network(torch.randn(1, 3, 90, 70))["out"].shape[-2:] == (90, 70)


def test_too_little_padding_is_refused():
    with pytest.raises(UserError, match="begin 11 pixels within the picture: enlarge its backbone's padding by 11"):
        FCN(num_classes=1, backbone=VGG16(width=1 / 32, padding=70), stride=32)
    with pytest.raises(UserError, match="an input of 1 x 20 pixels is too small"):
        FCN(num_classes=1, backbone=VGG16(width=1 / 32, padding=81), stride=32)(torch.zeros(1, 3, 1, 20))


def test_grids_follow_layers():
    assert Grid().down(2, 2) == Grid(2, 0.5)  # a pooling's first cell lies between pixels 0 and 1
    assert Grid().down(3, 1, 1) == Grid(1, 0)
    assert Grid(2, 0.5).up(4, 2) == Grid(1, -1)
    assert crop_offset(Grid(1, -19), Grid()) == 19
    for coarse, fine in ((Grid(2, 0), Grid(1, 0)), (Grid(1, -0.5), Grid()), (Grid(1, 3), Grid())):
        with pytest.raises(ValueError):
            crop_offset(coarse, fine)


@pytest.mark.parametrize("kind, cells", [("vgg16", (16, 8, 2)), ("alexnet", (14, 8, 3))])
def test_features_lie_where_the_grid_says(kind, cells):
    """The pixels that a cell sees are centred on the pixel that its grid names."""
    backbone = small(kind).eval()
    for i, layer in enumerate(backbone.features):
        if isinstance(layer, nn.Conv2d):  # all pixels count alike
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        elif isinstance(layer, nn.MaxPool2d):
            backbone.features[i] = nn.AvgPool2d(layer.kernel_size, layer.stride, ceil_mode=True)
    nn.init.constant_(backbone.fc6.weight, 1)
    nn.init.constant_(backbone.fc7.weight, 1)
    for feature, grid, cell in zip(range(3), backbone.grids, cells, strict=True):
        image = torch.ones(1, 3, 700, 700, requires_grad=True)
        padded = backbone(image)[feature]
        cell += int(300 / grid.stride)
        padded[0, 0, cell, cell].backward()
        weight = image.grad[0, 0].sum(1).double()
        centre = (weight * torch.arange(700)).sum() / weight.sum()
        assert centre.item() == pytest.approx(grid.stride * cell + grid.start, abs=1e-3)


def test_bilinear_kernels():
    assert torch.allclose(bilinear_kernel(4)[1], torch.tensor([0.1875, 0.5625, 0.5625, 0.1875]))
    assert torch.allclose(bilinear_kernel(3)[1], torch.tensor([0.5, 1.0, 0.5]))
    assert bilinear_kernel(64).sum() == pytest.approx(32**2)


def test_frozen_and_learnt_upsampling_agree():
    x = torch.randn(2, 3, 5, 4)
    frozen = BilinearUpsampling(3, 16, 8, learn=False)
    learnt = BilinearUpsampling(3, 16, 8, learn=True)
    assert not frozen.weight.requires_grad
    assert learnt.weight.requires_grad
    assert torch.equal(frozen.weight, learnt.weight)
    assert torch.allclose(frozen(x), learnt(x), atol=1e-6)
    # Within the border it is the interpolation that everybody calls bilinear.
    expected = F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=False)
    assert torch.allclose(frozen(x)[..., 4:-4, 4:-4][..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=1e-6)


def test_scores_begin_at_zero_so_that_a_new_skip_adds_nothing():
    torch.manual_seed(0)
    coarse = FCN(num_classes=4, backbone=small("vgg16"), stride=32).eval()
    finer = FCN(num_classes=4, backbone=small("vgg16"), stride=16).eval()
    nn.init.normal_(coarse.scores["stride32"].weight)
    finer.load_state_dict(
        {**finer.state_dict(), **{k: v for k, v in coarse.state_dict().items() if not k.startswith("upsampling")}}
    )
    assert not finer.scores["stride16"].weight.any()
    image = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        a, b = coarse(image)["out"], finer(image)["out"]
    # Two interpolations in a row (x2, x16) are not quite one (x32), but the same on average, in the same place.
    assert (a - b).abs().mean() < 0.15 * a.abs().mean()
    assert (a.roll(16, -1) - b).abs().mean() > 0.2 * a.abs().mean()


def test_at_once_scales_the_features_before_they_are_scored():
    staged = FCN(num_classes=2, backbone=small("vgg16"), stride=8).eval()
    at_once = FCN(num_classes=2, backbone=small("vgg16"), stride=8, at_once=True).eval()
    for score in staged.scores.values():
        nn.init.normal_(score.weight)
    at_once.load_state_dict(staged.state_dict())
    for scale, score in zip(AT_ONCE_SCALES, at_once.scores.values(), strict=True):
        with torch.no_grad():
            score.weight /= scale
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.allclose(staged(image)["out"], at_once(image)["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "backbone, classifier", [(VGG16, torchvision.models.vgg16), (AlexNet, torchvision.models.alexnet)]
)
def test_a_classifiers_weights_give_the_classifiers_features(backbone, classifier):
    """The convolutions that were fully connected layers see on 224 pixels what the classifier sees."""
    peer = classifier(weights=None).eval()
    network = backbone(padding=peer.features[0].padding[0])
    network.load_state_dict(network.state_from_classifier(peer.state_dict()))
    network.eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = peer.classifier[:-1](peer.avgpool(peer.features(image)).flatten(1))
        found = network(image)[-1]
    assert torch.allclose(found.flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_googlenet_takes_torchvisions_weights():
    peer = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    network = GoogLeNet(padding=3)
    network.load_state_dict(network.state_from_classifier(peer.state_dict()))
    network.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = image
        for name, layer in peer.named_children():
            if name in ("avgpool", "aux1"):
                break
            expected = layer(expected)
        assert torch.allclose(network(image)[-1], expected, rtol=1e-4, atol=1e-5)


def test_channels_reach_caffe_as_blue_green_red():
    mean = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)
    network = FCN(num_classes=2, backbone=small("alexnet"), stride=32, mean=mean, std=(1 / 255,) * 3, bgr=True)
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    done = network.preprocess(image, torch.tensor([[1, 2]]))
    assert torch.allclose(done[0, :, 0, 0], torch.tensor([50 - 104.00699, 100 - 116.66877, 200 - 122.67892]), atol=1e-4)
    assert not done[0, :, 1].any()  # beyond the picture: the mean colour


def test_an_unknown_stride_is_refused():
    with pytest.raises(UserError, match="no stride 4: choose 32, 16 or 8"):
        FCN(num_classes=2, backbone=small("alexnet"), stride=4)


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="no weights of CaffeNet: set its pretrained to false"):
        CaffeNet(pretrained=True)
    with pytest.raises(UserError, match=r"those of VGG16 at width 1\.0, not 0\.125, and without batch_norm"):
        VGG16(pretrained=True, width=0.125)
    with pytest.raises(UserError, match="without batch_norm: set these two so"):
        AlexNet(pretrained=True, batch_norm=True)


def test_batch_normalisation_changes_no_grid():
    plain, normalised = (VGG16(width=1 / 32, batch_norm=value) for value in (False, True))
    assert normalised.grids == plain.grids and normalised.channels == plain.channels
    kinds = [type(layer) for layer in normalised.features]
    assert kinds.count(nn.BatchNorm2d) == 13 and kinds[:3] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    shapes = [[x.shape for x in network(torch.zeros(1, 3, 64, 48))] for network in (plain, normalised)]
    assert shapes[0] == shapes[1]
