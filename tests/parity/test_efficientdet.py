"""The same weights in effdet's networks and in ours give the same numbers.

effdet differs on purpose in two settings, which are set to the published ones here: its backbones keep torch's BN
momentum of 0.1, and its anchors of ratio 2 measure 1.4 x 0.7 where automl has sqrt(2) x 1 / sqrt(2).
"""

import copy

import pytest
import torch
from torch import nn

effdet = pytest.importorskip("effdet")

from models.detection import EfficientDet  # noqa: E402
from models.detection.postprocessing.nms import SoftNMS  # noqa: E402
from models.detection.postprocessing.postprocess import Postprocessor  # noqa: E402
from models.detection.weights import load_weights  # noqa: E402

SIZE = 128


class Pair:
    """effdet's training bench and our detector with its random weights, and a batch."""

    def __init__(self, variant, folder, num_classes=90):
        torch.manual_seed(0)
        config = effdet.get_efficientdet_config(f"tf_efficientdet_{variant}")
        config.image_size = (SIZE, SIZE)
        config.aspect_ratios = [1.0, 2.0, 0.5]
        config.num_classes = num_classes
        config.backbone_args = {"drop_path_rate": 0.0}
        network = effdet.EfficientDet(config, pretrained_backbone=False)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01
                # Statistics and scales off their initial values, so that a mix-up would show.
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        for name, parameter in network.named_parameters():
            if name.endswith("edge_weights"):
                nn.init.uniform_(parameter, -0.2, 1.5)
        torch.save(network.state_dict(), folder / "effdet.pth")
        self.theirs = effdet.DetBenchTrain(network)
        self.ours = EfficientDet(num_classes=num_classes, variant=variant, drop_path_rate=0.0)
        load_weights(self.ours, folder / "effdet.pth")
        self.images = torch.randn(2, 3, SIZE, SIZE)
        self.image_size = torch.full((2, 2), SIZE)
        boxes = [
            [[10, 20, 60, 90], [30, 30, 50, 44], [0, 0, 0, 0]],
            [[5, 5, 120, 120], [80, 10, 127, 50], [1, 1, 30, 30]],
        ]
        self.boxes = torch.tensor(boxes).float()
        self.labels = torch.tensor([[3, 7, -1], [0, num_classes - 1, 4]])

    def train(self, mode=True):
        self.theirs.train(mode)
        self.ours.train(mode)
        return self

    def their_losses(self):
        labels = torch.where(self.labels >= 0, self.labels + 1, -1).float()  # effdet counts from 1
        return self.theirs(self.images, {"bbox": self.boxes[..., [1, 0, 3, 2]], "cls": labels})

    def our_losses(self):
        targets = {"boxes": self.boxes, "labels": self.labels, "iscrowd": torch.zeros_like(self.labels).bool()}
        terms = self.ours.loss_terms(self.ours(self.images), targets, self.image_size)
        return {name: term.value() for name, term in terms.items()}


@pytest.fixture(scope="module", params=["d0", "d1"])
def original(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def pair(original):
    return copy.deepcopy(original)


def by_anchor(levels, width):
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, width) for x in levels], 1)


@pytest.mark.parametrize("training", [False, True])
def test_raw_outputs(pair, training):
    pair.train(training)
    pair.theirs.double()
    pair.ours.double()
    with torch.no_grad():
        classes, boxes = pair.theirs.model(pair.images.double())
        outputs = pair.ours(pair.images.double())
    torch.testing.assert_close(torch.cat(outputs["class_logits"], 1), by_anchor(classes, 90), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat(outputs["box_codes"], 1), by_anchor(boxes, 4), rtol=1e-9, atol=1e-9)


def test_anchors(pair):
    sizes = pair.ours(pair.images)["sizes"]
    assert torch.equal(pair.ours.anchors(sizes), pair.theirs.anchors.boxes[:, [1, 0, 3, 2]])


def test_targets(pair):
    sizes = pair.ours(pair.images)["sizes"]
    targets = {"boxes": pair.boxes, "labels": pair.labels, "iscrowd": torch.zeros_like(pair.labels).bool()}
    labels, codes = pair.ours.assign(sizes, targets)
    theirs = effdet.anchors.AnchorLabeler(pair.theirs.anchors, 90)
    label_levels, code_levels, positives = theirs.batch_label_anchors(
        pair.boxes[..., [1, 0, 3, 2]], torch.where(pair.labels >= 0, pair.labels + 1, -1).float()
    )
    assert torch.equal(labels, torch.cat([x.flatten(1) for x in label_levels], 1))
    assert torch.equal((labels >= 0).sum(1).float(), positives)
    expected = torch.cat([x.reshape(2, -1, 4) for x in code_levels], 1)
    torch.testing.assert_close(codes, expected, rtol=1e-5, atol=1e-6)


def gradients_in_our_names(network, variant):
    """By way of a checkpoint of effdet that holds gradients in the place of weights."""
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save({name: gradients.get(name, value) for name, value in network.state_dict().items()}, "gradients.pth")
    ours = EfficientDet(num_classes=90, variant=variant).double()
    load_weights(ours, "gradients.pth")
    return ours.state_dict()


def test_losses_gradients_and_running_statistics(pair):
    # The networks in float64, so that what differs is not the rounding of some hundred layers; the losses are float32.
    pair.train()
    pair.theirs.model.double()
    pair.ours.double()
    pair.images = pair.images.double()
    theirs, ours = pair.their_losses(), pair.our_losses()
    torch.testing.assert_close(ours["class_loss"], theirs["class_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours["box_loss"], 50 * theirs["box_loss"], rtol=1e-6, atol=0)
    sum(ours.values()).backward()
    theirs["loss"].backward()
    expected = gradients_in_our_names(pair.theirs.model, pair.ours.variant)
    scale = max(parameter.grad.abs().max().item() for parameter in pair.ours.parameters())
    for name, parameter in pair.ours.named_parameters():
        # Some gradients are zero by construction (biases before batch normalisation): compare with the scale of all.
        tolerance = 1e-5 * expected[name].abs().max().item() + 1e-10 * scale
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023
    for name, buffer in pair.ours.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, expected[name], rtol=1e-9, atol=1e-9)


def test_losses_and_gradients_in_float32(pair):
    pair.train()
    theirs, ours = pair.their_losses(), pair.our_losses()
    torch.testing.assert_close(ours["class_loss"], theirs["class_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours["box_loss"], 50 * theirs["box_loss"], rtol=1e-5, atol=0)
    sum(ours.values()).backward()
    theirs["loss"].backward()
    expected = gradients_in_our_names(pair.theirs.model, pair.ours.variant)
    parameters = dict(pair.ours.named_parameters())
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters.values()]).double()
    difference = flat - torch.cat([expected[name].flatten() for name in parameters])
    assert difference.norm() <= 1e-4 * flat.norm()


@pytest.mark.parametrize("soft", [False, True])
def test_detections(tmp_path, soft):
    # Few classes where soft: effdet tells classes apart by shifting boxes, which costs float32 digits with many.
    pair = Pair("d0", tmp_path, num_classes=4 if soft else 90).train(False)
    bench = effdet.DetBenchPredict(pair.theirs.model)
    bench.soft_nms = soft
    # Larger weights in the predictors, so that scores and boxes differ, but short of scores that round to 1 and tie.
    with torch.no_grad():
        for network in (bench.model.class_net, bench.model.box_net):
            network.predict.conv_pw.weight.mul_(20 if network is bench.model.class_net else 30)
    torch.save(bench.model.state_dict(), tmp_path / "spread.pth")
    load_weights(pair.ours, tmp_path / "spread.pth")
    if soft:
        pair.ours.postprocessor = Postprocessor(nms=SoftNMS())
    info = {"img_scale": torch.ones(2), "img_size": torch.tensor([[SIZE, 100.0], [90.0, SIZE]])}  # (width, height)
    with torch.no_grad():
        expected = bench(pair.images, info)  # (2, 100, 6)
        outputs = pair.ours(pair.images)
        found = pair.ours.detect(outputs, info["img_size"].flip(1).long())
    assert expected[..., 4].max() > 0.5  # some are confident
    assert len(expected[..., 5].unique()) > 2
    torch.testing.assert_close(found["scores"], expected[..., 4], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected[..., :4], rtol=1e-4, atol=1e-3)
    assert torch.equal(found["labels"], expected[..., 5].long() - 1)
