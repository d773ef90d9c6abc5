"""DetectoRS: switchable atrous convolution and the recursive pyramid, from their closed forms."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from errors import UserError
from models.backbones.detectors_resnet import DetectorsResNet, before_last_relu
from models.backbones.resnet import ResNet
from models.backbones.switchable_atrous import StandardisedConv, SwitchableAtrousConv
from models.detection import Detector
from models.necks.fpn import FPN
from models.necks.recursive_fpn import RecursivePyramid

RESNET = dict(name="resnet18", frozen_stages=0, norm="batch")


def conv3x3(**options):
    conv = nn.Conv2d(6, 4, 3, padding=1, bias=False, **options)
    nn.init.normal_(conv.weight, 0.1, 0.3)
    return conv


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}])
def test_switchable_conv_starts_as_the_plain_one(deformable, options):
    torch.manual_seed(0)
    conv = conv3x3(**options)
    x = torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(StandardisedConv(conv)(x), conv(x))
    torch.testing.assert_close(SwitchableAtrousConv(conv, deformable=deformable)(x), conv(x), rtol=1e-4, atol=1e-5)


def test_standardised_conv_keeps_its_scale():
    conv = StandardisedConv(conv3x3())
    before = conv.standardised().detach()
    with torch.no_grad():
        conv.weight.mul_(7).add_(3)  # only the pattern counts
    torch.testing.assert_close(conv.standardised(), before, rtol=1e-3, atol=1e-4)


def test_switchable_conv_mixes_two_dilations():
    torch.manual_seed(0)
    conv = randomise(SwitchableAtrousConv(conv3x3()))
    x = torch.randn(2, 6, 9, 7)
    weight = conv.standardised()
    y = x + (conv.before.weight[:, :, 0, 0] @ x.mean((2, 3)).T).T[..., None, None] + conv.before.bias.view(-1, 1, 1)
    near = F.conv2d(y, weight, padding=1)
    far = F.conv2d(y, weight + conv.weight_difference, padding=3, dilation=3)
    centre = y[:, :, 2:7, 1:6].mean((2, 3))  # 5 x 5 around row 4, column 3
    switch = (centre @ conv.switch.weight.view(-1) + conv.switch.bias)[:, None]
    mixed = switch * near[..., 4, 3] + (1 - switch) * far[..., 4, 3]
    conv.after.weight.data.zero_()
    torch.testing.assert_close(conv(x)[..., 4, 3], mixed + conv.after.bias)


def test_deformable_offsets_move_the_samples():
    conv = SwitchableAtrousConv(conv3x3(), deformable=True)
    plain = conv3x3()
    plain.weight.data = conv.weight.data
    with torch.no_grad():
        conv.offsets[0].bias[1::2] = 1.0  # every sample one column to the right
    x = torch.randn(1, 6, 8, 8)
    torch.testing.assert_close(conv(x)[..., 2:5], plain(x)[..., 3:6], rtol=1e-4, atol=1e-5)


def test_too_small_a_map_is_refused():
    with pytest.raises(UserError, match="larger pictures"):
        SwitchableAtrousConv(conv3x3())(torch.randn(1, 6, 2, 5))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_detectors_resnet_starts_as_the_resnet(name):
    torch.manual_seed(0)
    plain = ResNet(name, frozen_stages=0, norm="batch").eval().double()
    torch.manual_seed(0)
    ours = DetectorsResNet(name, frozen_stages=0, norm="batch", feedback_channels=8).eval().double()
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    feedback = [torch.randn(1, 8, s, s, dtype=torch.float64) for s in (12, 6, 3)]
    with torch.no_grad():
        expected = plain(images)
        for got in (ours(images), ours(images, feedback)):
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    kinds = [type(m) for m in ours.body.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert kinds.count(StandardisedConv) == sum(
        m.kernel_size == (3, 3) for m in plain.body.layer1.modules() if isinstance(m, nn.Conv2d)
    )


def test_feedback_enters_before_the_last_relu():
    torch.manual_seed(0)
    ours = DetectorsResNet(**RESNET, out_indices=(1, 2), switchable_stages=(), feedback_channels=4).eval()
    assert ours.fed_back == [1]
    randomise(ours.feedback)
    images, feedback = torch.randn(1, 3, 32, 32), [None, torch.randn(1, 4, 4, 4)]
    body = ours.body
    c2 = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images)))))
    first = F.relu(before_last_relu(body.layer2[0], c2) + ours.feedback["2"](feedback[1]))
    got = ours(images, feedback)
    torch.testing.assert_close(got[0], c2)
    torch.testing.assert_close(got[1], body.layer2[1](first))
    assert not torch.allclose(got[1], ours(images)[1])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_before_last_relu(name):
    block = torchvision.models.get_model(name).layer2[0].eval()
    x = torch.randn(1, block.conv1.in_channels, 6, 6)
    torch.testing.assert_close(before_last_relu(block, x).relu(), block(x))


def test_recursive_pyramid_mixes_two_looks():
    torch.manual_seed(0)
    first = ResNet(**RESNET)
    second = DetectorsResNet(**RESNET, switchable_stages=(), feedback_channels=8)
    pyramid = RecursivePyramid(first, second, lambda channels: FPN(channels, channels=8)).eval()
    assert (pyramid.channels, pyramid.strides) == ([8, 8, 8], [8, 16, 32])
    images = torch.randn(1, 3, 64, 64)
    one, two = pyramid.pyramid(first(images)), pyramid.pyramid(second(images))
    for got, a, b in zip(pyramid(images), one, two, strict=True):  # at the start the feedback is nothing, the gate half
        torch.testing.assert_close(got, (a + b) / 2)
    randomise(pyramid.gate)
    randomise(second.feedback)
    fed = second(images, [pyramid.aspp(x) for x in one[:3]])
    for got, a, b in zip(pyramid(images), one, pyramid.pyramid(fed), strict=True):
        gate = pyramid.gate(b).sigmoid()
        torch.testing.assert_close(got, gate * b + (1 - gate) * a)


RETINANET = """
class_path: models.detection.OneStageDetector
init_args:
  num_classes: 3
  image_size: 128
  backbone:
    class_path: models.necks.recursive_fpn.RecursivePyramid
    init_args:
      backbone:
        class_path: models.backbones.detectors_resnet.DetectorsResNet
        init_args: {name: resnet18, frozen_stages: 0, norm: batch}
      feedback_backbone:
        class_path: models.backbones.detectors_resnet.DetectorsResNet
        init_args: {name: resnet18, frozen_stages: 0, norm: batch, feedback_channels: 16}
      neck: {class_path: models.necks.fpn.FPN, init_args: {channels: 16}}
  neck: models.necks.recursive_fpn.IdentityNeck
  head: {class_path: models.detection.dense_heads.efficientdet_head.EfficientDetHead, init_args: {repeats: 1}}
  anchors: {class_path: models.detection.anchors.AnchorGenerator}
  matcher: {class_path: models.detection.matcher.Matcher}
  box_coder: {class_path: models.detection.box_coder.BoxCoder}
  class_loss: {class_path: models.detection.losses.focal_loss.FocalLoss}
  box_loss: {class_path: models.detection.losses.huber_loss.HuberLoss}
  postprocessor: {class_path: models.detection.postprocessing.postprocess.Postprocessor}
"""
FASTER_RCNN = """
class_path: models.detection.two_stage.TwoStageDetector
init_args:
  num_classes: 3
  image_size: 96
  backbone:
    class_path: models.necks.recursive_fpn.RecursivePyramid
    init_args:
      backbone:
        class_path: models.backbones.detectors_resnet.DetectorsResNet
        init_args: {name: resnet18, frozen_stages: 0, norm: batch, out_indices: [1, 2, 3, 4]}
      feedback_backbone:
        class_path: models.backbones.detectors_resnet.DetectorsResNet
        init_args: {name: resnet18, frozen_stages: 0, norm: batch, out_indices: [1, 2, 3, 4], feedback_channels: 16}
      neck: {class_path: models.necks.fpn.FPN, init_args: {channels: 16, extra: pool}}
  rpn: models.detection.rpn.RPN
  roi_head: models.detection.roi.roi_head.RoIHead
"""


@pytest.mark.parametrize(("spec", "side"), [(RETINANET, 128), (FASTER_RCNN, 96)])
def test_recursive_pyramid_in_detectors_without_a_special_case(spec, side):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Detector)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    network = instantiate(parser.parse_object({"network": yaml.safe_load(spec)})).network
    targets = {
        "boxes": torch.tensor([[[10.0, 10, 50, 50]]]).repeat(2, 1, 1),
        "labels": torch.tensor([[2], [0]]),
        "iscrowd": torch.zeros(2, 1, dtype=torch.bool),
        "area": torch.full((2, 1), 1600.0),
    }
    size = torch.tensor([[side, side], [side, side]])
    outputs = network.train()(torch.randn(2, 3, side, side))
    terms = network.loss_terms(outputs, targets, size)
    sum(term.value() for term in terms.values()).backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert not unused
    assert network.detect(outputs, size)["boxes"].shape[-1] == 4
