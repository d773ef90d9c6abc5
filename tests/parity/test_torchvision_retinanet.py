"""RetinaNet against torchvision's with the same weights: outputs, anchors, losses, gradients, detections."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet as Theirs
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.backbones.resnet import ResNet
from models.detection.converters.torchvision_retinanet import from_torchvision_retinanet
from models.detection.retinanet import FORMS, RetinaNet
from models.detection.weights import load_weights

CLASSES = 5
HEIGHT, WIDTH = 96, 160  # torchvision's cells are not where the strides of the coarse levels say


def their_network(version):
    """As `retinanet_resnet50_fpn` and `..._v2` are put together, on a ResNet-18 that tests can afford."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=FrozenBatchNorm2d if version == "v1" else nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256 if version == "v1" else 512, 256),
    )
    options = {"min_size": HEIGHT, "max_size": WIDTH, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if version == "v1":
        return Theirs(backbone, CLASSES, **options)
    anchors = _default_anchorgen()
    head = RetinaNetHead(backbone.out_channels, 9, CLASSES, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return Theirs(backbone, CLASSES, anchor_generator=anchors, head=head, **options)


class Pair:
    """torchvision's network and ours with its random weights, and a batch."""

    def __init__(self, version):
        torch.manual_seed(0)
        self.theirs = their_network(version)
        for module in self.theirs.modules():
            # Statistics and scales off their initial values, so that a mix-up would show.
            if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d | nn.GroupNorm):
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
        # Scores and boxes that differ from place to place.
        std = 0.008 if version == "v1" else 0.05  # group normalisation shrinks what comes before
        nn.init.normal_(self.theirs.head.classification_head.cls_logits.weight, std=std)
        nn.init.normal_(self.theirs.head.regression_head.bbox_reg.weight, std=std / 4)
        for subnet in (self.theirs.head.classification_head, self.theirs.head.regression_head):
            for module in subnet.conv.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.03)
        form = f"torchvision_{version}"
        norm = FORMS[form].norm
        backbone = ResNet("resnet18", norm=norm, frozen_stages=0)
        self.ours = RetinaNet(num_classes=CLASSES, form=form, backbone=backbone)
        self.ours.load_state_dict(from_torchvision_retinanet(self.theirs.state_dict()))
        self.theirs.double()
        self.ours.double()
        self.images = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64)
        self.image_size = torch.tensor([[HEIGHT, WIDTH]] * 2)
        boxes = [
            [[10, 20, 60, 90], [30, 30, 62, 60], [0, 0, 0, 0]],
            [[5, 5, 150, 94], [80, 10, 127, 50], [1, 1, 30, 30]],
        ]
        labels = torch.tensor([[3, 0, -1], [0, CLASSES - 1, 4]])
        self.targets = {"boxes": torch.tensor(boxes).float(), "labels": labels, "iscrowd": labels < -1}

    def their_losses(self):
        # torchvision's labels are indices of outputs: it does not treat the first, its background, differently.
        rows = zip(self.targets["boxes"], self.targets["labels"], strict=True)
        targets = [{"boxes": b[y >= 0].double(), "labels": y[y >= 0]} for b, y in rows]
        losses = self.theirs(list(self.images), targets)
        return {"class_loss": losses["classification"], "box_loss": losses["bbox_regression"]}

    def our_losses(self):
        terms = self.ours.loss_terms(self.ours(self.images), self.targets, self.image_size)
        return {name: term.value() for name, term in terms.items()}


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request):
    return Pair(request.param)


def in_our_order(x):
    """(B, cells * 9, C) by ratio and side -> by side and ratio."""
    return x.unflatten(1, (-1, 3, 3)).transpose(2, 3).flatten(1, 3)


def test_raw_outputs_and_anchors(pair):
    pair.theirs.eval()
    pair.ours.eval()
    with torch.no_grad():
        images = pair.theirs.transform(list(pair.images))[0]
        features = list(pair.theirs.backbone(images.tensors).values())
        expected = pair.theirs.head(features)
        outputs = pair.ours(pair.images)
        anchors = pair.theirs.anchor_generator(images, features)[0]
    for name, key in (("class_logits", "cls_logits"), ("box_codes", "bbox_regression")):
        found = torch.cat(outputs[name], 1)
        assert found.std() > 0.05
        torch.testing.assert_close(found, in_our_order(expected[key]), rtol=1e-9, atol=1e-9)
    ours = pair.ours.anchors(outputs["sizes"])
    assert torch.equal(ours, in_our_order(anchors[None])[0].float())
    assert len(ours) == 9 * (12 * 20 + 6 * 10 + 3 * 5 + 2 * 3 + 1 * 2)


def test_detections(pair):
    pair.theirs.eval()
    pair.ours.eval()
    with torch.no_grad():
        expected = pair.theirs(list(pair.images))
        found = pair.ours.detect(pair.ours(pair.images), pair.image_size)
    for i, wanted in enumerate(expected):
        count = len(wanted["scores"])
        assert count > 20 and len(wanted["labels"].unique()) > 2
        assert (found["labels"][i] >= 0).sum() == count
        torch.testing.assert_close(found["scores"][i, :count], wanted["scores"].float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["boxes"][i, :count], wanted["boxes"].float(), rtol=1e-5, atol=1e-3)
        assert torch.equal(found["labels"][i, :count], wanted["labels"])


def test_losses_and_gradients(pair):
    pair.theirs.train()
    pair.ours.train()
    theirs, ours = pair.their_losses(), pair.our_losses()
    for name, value in ours.items():
        torch.testing.assert_close(value.double(), theirs[name], rtol=1e-5, atol=0, msg=lambda m: f"{name}: {m}")  # noqa: B023
        assert value > 0.01
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    expected = from_torchvision_retinanet(gradients)
    own = dict(pair.ours.named_parameters())
    assert own.keys() == expected.keys()
    for name, parameter in own.items():
        wanted = expected[name]
        assert wanted.any(), name
        tolerance = 1e-4 * wanted.abs().max().item()
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize(("version", "make"), [("v1", retinanet_resnet50_fpn), ("v2", retinanet_resnet50_fpn_v2)])
def test_published_files_fit(version, make, caplog):
    """A file as torchvision saves it, for its 91 classes, into a network of three of them."""
    theirs = make(weights=None, weights_backbone=None)
    with torch.no_grad():
        theirs.head.classification_head.cls_logits.bias.copy_(torch.arange(9 * 91))
    state = theirs.state_dict()
    if version == "v1":  # as the file is that was published: batch normalisation frozen, the names of its time
        state = {key: value for key, value in state.items() if "num_batches" not in key}
        for name in ("classification_head", "regression_head"):
            for i in range(4):
                for kind in ("weight", "bias"):
                    state[f"head.{name}.conv.{2 * i}.{kind}"] = state.pop(f"head.{name}.conv.{i}.0.{kind}")
        state = {key.replace("blocks.0.0.", "blocks.0."): value for key, value in state.items()}
    torch.save(state, "theirs.pth")
    ours = RetinaNet(num_classes=3, form=f"torchvision_{version}")
    load_weights(ours, "theirs.pth", class_names=["dog", "blood cell", "person"])
    bias = ours.head.class_net.predict.bias.view(3, 3, 3)  # side, ratio, class
    their_bias = torch.arange(9 * 91).view(3, 3, 91).transpose(0, 1)  # ratio, side -> side, ratio
    assert torch.equal(bias[..., 0], their_bias[..., 18]) and torch.equal(bias[..., 2], their_bias[..., 1])
    assert "except of the classes: dog, person" in caplog.text
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval().head(list(theirs.backbone(images).values()))["bbox_regression"]
        found = torch.cat(ours.eval()(images)["box_codes"], 1)
    torch.testing.assert_close(found, in_our_order(expected), rtol=1e-3, atol=1e-5)
