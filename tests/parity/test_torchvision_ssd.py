"""SSD300 against torchvision's with the same weights: outputs, boxes, losses, gradients, detections."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssd300_vgg16
from torchvision.ops import box_iou

from models.detection.converters.torchvision_ssd import from_torchvision_ssd
from models.detection.ssd import SSD
from models.detection.weights import load_weights

CLASSES = 4
SIZE = 300
BOXES = 8732


def their_network(**options):
    """Without values, and without the time that VGG16's classifier, which is thrown away, would take to initialise."""
    with torch.device("meta"):
        network = ssd300_vgg16(weights=None, weights_backbone=None, **options)
    return network.to_empty(device="cpu")


class Pair:
    """torchvision's network and ours with its random weights, and a batch."""

    def __init__(self):
        torch.manual_seed(0)
        options = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        self.theirs = their_network(num_classes=CLASSES + 1, **options)
        for module in self.theirs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.normal_(module.bias, std=0.1)
        nn.init.uniform_(self.theirs.backbone.scale_weight, 10, 30)
        self.ours = SSD(num_classes=CLASSES, form="300_torchvision")
        self.ours.load_state_dict(from_torchvision_ssd(self.theirs.state_dict()))
        boxes = [
            [[10, 20, 60, 90], [130, 30, 150, 44], [0, 0, 0, 0]],
            [[5, 5, 280, 270], [80, 110, 127, 150], [200, 1, 290, 90]],
        ]
        labels = torch.tensor([[3, 0, -1], [0, CLASSES - 1, 2]])
        self.targets = {"boxes": torch.tensor(boxes).float(), "labels": labels, "iscrowd": labels < -1}
        self.image_size = torch.full((2, 2), SIZE)
        generator = torch.Generator().manual_seed(1)
        # Outputs of no network, which vary more than those of an untrained one.
        self.logits = torch.randn(2, BOXES, CLASSES + 1, generator=generator) * 2
        self.logits[..., 0] += 4
        self.codes = torch.randn(2, BOXES, 4, generator=generator)
        self.maps = [38, 19, 10, 5, 3, 1]
        self.sizes = [side**2 * n for side, n in zip(self.maps, [4, 6, 6, 6, 4, 4], strict=True)]

    def their_anchors(self):
        features = [torch.empty(1, 1, side, side) for side in self.maps]
        images = self.theirs.transform([torch.zeros(3, SIZE, SIZE)])[0]
        return self.theirs.anchor_generator(images, features)[0]

    def their_losses(self, logits, codes):
        """With the background as class 0 and the objects from 1."""
        anchors = self.their_anchors()
        targets = []
        for boxes, labels in zip(self.targets["boxes"], self.targets["labels"], strict=True):
            targets.append({"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1})
        targets = targets[: len(logits)]
        matched = [self.theirs.proposal_matcher(box_iou(target["boxes"], anchors)) for target in targets]
        outputs = {"cls_logits": logits, "bbox_regression": codes}
        losses = self.theirs.compute_loss(targets, outputs, [anchors] * len(logits), matched)
        return {"class_loss": losses["classification"], "box_loss": losses["bbox_regression"]}

    def our_losses(self, class_logits, box_codes):
        targets = {key: value[: len(class_logits[0])] for key, value in self.targets.items()}
        outputs = {"class_logits": class_logits, "box_codes": box_codes, "sizes": [(s, s) for s in self.maps]}
        terms = self.ours.loss_terms(outputs, targets, self.image_size[: len(class_logits[0])])
        return {name: term.value() for name, term in terms.items()}


@pytest.fixture(scope="module")
def pair():
    return Pair()


def test_default_boxes(pair):
    expected = pair.their_anchors()
    found = pair.ours.anchors([(side, side) for side in pair.maps])
    assert found.shape == (BOXES, 4)
    assert torch.equal(found, expected)  # to the last digit, which decides between boxes that overlap equally


def test_raw_outputs_and_gradients_through_the_network(pair):
    image = 50 * torch.randn(1, 3, SIZE, SIZE)
    outputs = pair.ours(image)
    logits, codes = torch.cat(outputs["class_logits"], 1), torch.cat(outputs["box_codes"], 1)
    expected = pair.theirs.head(list(pair.theirs.backbone(image).values()))
    for found, wanted in ((logits, expected["cls_logits"]), (codes, expected["bbox_regression"])):
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.std().item())
    # Not the losses, whose mined negatives rounding decides between.
    factors = torch.randn(1, BOXES, CLASSES + 5)
    (torch.cat([logits, codes], -1) * factors).sum().backward()
    (torch.cat([expected["cls_logits"], expected["bbox_regression"]], -1) * factors).sum().backward()
    gradients = from_torchvision_ssd({name: p.grad for name, p in pair.theirs.named_parameters()})
    own = dict(pair.ours.named_parameters())
    assert own.keys() == gradients.keys()
    for name, parameter in own.items():
        wanted = gradients[name]
        assert wanted.any(), name
        tolerance = 1e-3 * wanted.abs().max().item()
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_losses_and_their_gradients(pair):
    pair.ours.train()
    theirs, ours = ([x.clone().requires_grad_() for x in (pair.logits, pair.codes)] for _ in range(2))
    expected = pair.their_losses(*theirs)
    found = pair.our_losses(*(x.split(pair.sizes, 1) for x in ours))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=0)
        assert value > 0.1
    sum(expected.values()).backward()
    sum(found.values()).backward()
    for x, y in zip(ours, theirs, strict=True):
        assert y.grad.any()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 6.0])
def test_detections(pair, offset):
    logits = pair.logits.clone()
    logits[..., 0] += offset  # few candidates, or more than enter suppression
    anchors = pair.their_anchors()
    outputs = {"cls_logits": logits, "bbox_regression": pair.codes}
    expected = pair.theirs.postprocess_detections(outputs, [anchors] * 2, [(SIZE, SIZE)] * 2)
    outputs = {
        "class_logits": logits.split(pair.sizes, 1),
        "box_codes": pair.codes.split(pair.sizes, 1),
        "sizes": [(side, side) for side in pair.maps],
    }
    found = pair.ours.detect(outputs, pair.image_size)
    for i, wanted in enumerate(expected):
        count = len(wanted["scores"])
        assert 50 < count <= 200 and (count == 200 or offset)
        assert (found["labels"][i] >= 0).sum() == count
        torch.testing.assert_close(found["scores"][i, :count], wanted["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["boxes"][i, :count], wanted["boxes"], rtol=1e-5, atol=1e-2)
        assert torch.equal(found["labels"][i, :count], wanted["labels"] - 1)


def test_published_files_fit(caplog):
    """A file as torchvision saves it, for its 91 classes, into a network of three of them."""
    theirs = their_network()
    nn.init.normal_(theirs.backbone.extra[0][7][1].weight)
    bias = theirs.head.classification_head.module_list[1].bias
    with torch.no_grad():
        bias.copy_(torch.arange(6 * 91))
    torch.save(theirs.state_dict(), "theirs.pth")
    ours = SSD(num_classes=3, form="300_torchvision")
    load_weights(ours, "theirs.pth", class_names=["dog", "blood cell", "person"])
    assert ours.head.background[1].bias.tolist() == [91 * box for box in range(6)]
    rows = ours.head.classes[1].bias.view(6, 3)
    assert rows[:, 0].tolist() == [91 * box + 18 for box in range(6)]
    assert rows[:, 2].tolist() == [91 * box + 1 for box in range(6)]
    assert "except of the classes: dog, person" in caplog.text
    assert torch.equal(ours.backbone.deep[8].weight, theirs.backbone.extra[0][7][1].weight)
