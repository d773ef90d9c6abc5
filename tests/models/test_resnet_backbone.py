"""The ResNet backbone against torchvision's classifier."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from errors import UserError
from models.backbones.resnet import ResNet, freeze_norms

SIZE = 64


def scatter_statistics(module):
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias, std=0.1)
            nn.init.normal_(child.running_mean, std=0.1)
            nn.init.uniform_(child.running_var, 0.5, 1.5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_are_those_of_torchvision(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).eval().double()
    scatter_statistics(theirs)
    ours = ResNet(name, out_indices=(1, 2, 3, 4)).double()
    ours.body.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    with torch.no_grad():
        features = ours.train()(images)  # training changes nothing: all normalisation is frozen
        for i, feature in enumerate(features, 1):
            x = getattr(theirs, f"layer{i}")(x)
            torch.testing.assert_close(feature, x)
    assert [f.shape[1] for f in features] == ours.channels
    assert [SIZE // f.shape[2] for f in features] == ours.strides == [4, 8, 16, 32]


def test_names_are_those_of_torchvisions_detectors():
    with torch.device("meta"):
        theirs = _resnet_fpn_extractor(torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d), 3)
        ours = ResNet()
    names = {name for name in theirs.state_dict() if name.startswith("body.")}
    assert set(ours.state_dict()) == names
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == {
        name for name, p in theirs.named_parameters() if p.requires_grad and name.startswith("body.")
    }


def test_stages_after_the_last_are_left_out():
    with torch.device("meta"):
        network = ResNet("resnet18", out_indices=(2, 3))
    assert network.channels == [128, 256]
    assert network.strides == [8, 16]
    assert not hasattr(network.body, "layer4")


@pytest.mark.parametrize(("frozen_stages", "trained"), [(0, "conv1"), (1, "layer1"), (2, "layer2"), (5, None)])
def test_frozen_stages_do_not_change(frozen_stages, trained):
    torch.manual_seed(0)
    network = ResNet("resnet18", frozen_stages=frozen_stages, norm="batch").train()
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    loss = sum(f.square().mean() for f in network(torch.randn(2, 3, SIZE, SIZE)))
    if trained is not None:
        loss.backward()
    optimizer.step()
    stages = {"conv1": "stem", "bn1": "stem"}
    changed = set()
    for name, value in network.body.state_dict().items():
        if not torch.equal(value, before[name]):
            changed.add(stages.get(name.split(".")[0], name.split(".")[0]))
    assert changed == set(["stem", "layer1", "layer2", "layer3", "layer4"][frozen_stages:])


def test_frozen_norm_is_the_batch_norm_of_evaluation():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=0.01), nn.ReLU()).eval()
    scatter_statistics(network)
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    freeze_norms(network)
    assert isinstance(network[1], FrozenBatchNorm2d)
    torch.testing.assert_close(network.train()(images), expected)


def test_norm_eps():
    network = ResNet("resnet18", norm_eps=0.0)
    assert {m.eps for m in network.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}


@pytest.mark.parametrize("name", ["resnet51", "vgg16"])
def test_not_a_resnet(name):
    with pytest.raises(UserError, match=name), torch.device("meta"):
        ResNet(name)
