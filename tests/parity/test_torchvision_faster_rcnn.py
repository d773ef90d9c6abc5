"""The same weights in torchvision's Faster R-CNN and in ours give the same numbers.

Chance is taken out of the sampling by giving torchvision's sampler the fixed order of ours. Networks are in float64, so
that what differs is not the rounding of some hundred layers. Pictures and numbers of boxes are small, for speed.
"""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps

from models.backbones.resnet import freeze_norms
from models.detection.converters.torchvision_faster_rcnn import from_torchvision_faster_rcnn
from models.detection.faster_rcnn import FasterRCNN
from models.detection.proposals import ProposalSelector
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.sampler import GOLDEN, RandomSampler
from models.detection.weights import load_weights

SIZE = 96
CLASSES = 7


class FixedOrder:
    """torchvision's sampler, with the candidates in the fixed order of ours."""

    def __init__(self, size, fraction):
        self.size, self.positives = size, int(size * fraction)

    def __call__(self, matched):
        results = []
        for labels in matched:
            order = torch.arange(len(labels)) * GOLDEN % 2**32
            positive = torch.nonzero(labels >= 1).flatten()
            positive = positive[order[positive].argsort()][: self.positives]
            negative = torch.nonzero(labels == 0).flatten()
            negative = negative[order[negative].argsort()][: self.size - len(positive)]
            results.append([torch.zeros_like(labels, dtype=torch.uint8) for _ in range(2)])
            results[-1][0][positive] = 1
            results[-1][1][negative] = 1
        return [r[0] for r in results], [r[1] for r in results]


class AlwaysFixed(RandomSampler):
    """Ours, in the fixed order in training too."""

    def __call__(self, labels, *, deterministic=False):
        return super().__call__(labels, deterministic=True)


class Pair:
    """torchvision's network and ours with its random weights, and a batch."""

    def __init__(self, version):
        torch.manual_seed(0)
        make = fasterrcnn_resnet50_fpn if version == "v1" else fasterrcnn_resnet50_fpn_v2
        # What the transform does is undone by its settings: images come normalised and in their size.
        options = {"min_size": SIZE, "max_size": SIZE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        options |= {"rpn_pre_nms_top_n_train": 120, "rpn_pre_nms_top_n_test": 80}
        options |= {"rpn_post_nms_top_n_train": 90, "rpn_post_nms_top_n_test": 50, "box_detections_per_img": 30}
        self.theirs = make(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **options)
        if version == "v1":  # as the published one is, and torchvision's is not unless it loads weights
            freeze_norms(self.theirs.backbone.body)
            overwrite_eps(self.theirs, 0.0)
        for name, module in self.theirs.named_modules():
            # Statistics and scales off their initial values, so that a mix-up would show.
            if isinstance(getattr(module, "running_mean", None), torch.Tensor):
                scale = 0.3 if "bn3" in name else 1.0
                nn.init.uniform_(module.weight, 0.8 * scale, 1.2 * scale)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
        # Objectness, scores and boxes that differ from place to place.
        nn.init.normal_(self.theirs.rpn.head.cls_logits.weight, std=0.1)
        nn.init.normal_(self.theirs.rpn.head.bbox_pred.weight, std=0.02)
        nn.init.normal_(self.theirs.roi_heads.box_predictor.cls_score.weight, std=0.3)
        nn.init.normal_(self.theirs.roi_heads.box_predictor.bbox_pred.weight, std=0.1)
        self.theirs.rpn.fg_bg_sampler = FixedOrder(256, 0.5)
        self.theirs.roi_heads.fg_bg_sampler = FixedOrder(40, 0.25)
        self.ours = FasterRCNN(num_classes=CLASSES, form=f"torchvision_{version}")
        self.ours.load_state_dict(from_torchvision_faster_rcnn(self.theirs.state_dict()))
        self.ours.rpn.sampler = AlwaysFixed(size=256, positive_fraction=0.5)
        self.ours.roi_head.sampler = AlwaysFixed(size=40, positive_fraction=0.25)
        self.ours.rpn.selector = ProposalSelector(candidates=(120, 80), max_proposals=(90, 50))
        self.ours.roi_head.postprocessor = RoIPostprocessor(max_detections=30)
        self.theirs.double()
        self.ours.double()
        self.images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
        self.image_size = torch.full((2, 2), SIZE)
        boxes = [
            [[10, 20, 60, 90], [30, 30, 50, 44], [0, 0, 0, 0]],
            [[5, 5, 90, 80], [40, 10, 77, 50], [1, 1, 30, 30]],
        ]
        labels = torch.tensor([[3, 6, -1], [0, CLASSES - 1, 4]])
        self.targets = {"boxes": torch.tensor(boxes).double(), "labels": labels, "iscrowd": labels < -1}

    def train(self, mode=True):
        self.theirs.train(mode)
        self.ours.train(mode)
        return self

    def their_losses(self):
        rows = zip(self.targets["boxes"], self.targets["labels"], strict=True)
        targets = [{"boxes": b[y >= 0], "labels": y[y >= 0] + 1} for b, y in rows]
        losses = self.theirs(list(self.images), targets)
        return {
            "rpn_class_loss": losses["loss_objectness"],
            "rpn_box_loss": losses["loss_rpn_box_reg"],
            "class_loss": losses["loss_classifier"],
            "box_loss": losses["loss_box_reg"],
        }

    def our_losses(self):
        terms = self.ours.loss_terms(self.ours(self.images), self.targets, self.image_size)
        return {name: term.value() for name, term in terms.items()}


@pytest.fixture(scope="module", params=["v1", "v2"])
def original(request):
    return Pair(request.param)


@pytest.fixture
def pair(original):
    pair = copy.copy(original)
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    return pair


def test_raw_outputs(pair):
    pair.train(False)
    with torch.no_grad():
        features = list(pair.theirs.backbone(pair.images).values())
        objectness, codes = pair.theirs.rpn.head(features)
        outputs = pair.ours(pair.images)
        for found, expected in zip(outputs["features"], features, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for found, expected in zip(outputs["objectness"], objectness, strict=True):
            torch.testing.assert_close(found, expected.permute(0, 2, 3, 1).flatten(1), rtol=1e-9, atol=1e-9)
        for found, expected in zip(outputs["box_codes"], codes, strict=True):
            expected = expected.permute(0, 2, 3, 1).reshape(2, -1, 4)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        boxes = pair.targets["boxes"]
        vectors = pair.theirs.roi_heads.box_head(
            pair.theirs.roi_heads.box_roi_pool(
                dict(zip(["0", "1", "2", "3"], features, strict=False)), list(boxes), [(SIZE, SIZE)] * 2
            )
        )
        logits, codes = pair.theirs.roi_heads.box_predictor(vectors)
        our_logits, our_codes = pair.ours.roi_head(outputs["features"], boxes, torch.ones(2, 3, dtype=torch.bool))
        torch.testing.assert_close(our_logits.flatten(0, 1), logits.roll(-1, 1), rtol=1e-9, atol=1e-9)
        expected = codes.view(6, -1, 4)[:, 1:].transpose(1, 2)
        torch.testing.assert_close(our_codes.flatten(0, 1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [False, True])
def test_proposals(pair, training):
    pair.train(training)
    with torch.no_grad():
        outputs = pair.ours(pair.images)
        boxes, valid = pair.ours.proposals(outputs, pair.image_size)
        images = pair.theirs.transform(list(pair.images))[0]
        targets = [{"boxes": b} for b in pair.targets["boxes"]]
        expected, _ = pair.theirs.rpn(images, pair.theirs.backbone(pair.images), targets)
    assert valid.sum(1).tolist() == [len(image) for image in expected]
    assert valid.sum(1).amin() >= 50
    for found, keep, wanted in zip(boxes, valid, expected, strict=True):
        torch.testing.assert_close(found[keep], wanted, rtol=1e-9, atol=1e-9)


def test_losses_and_gradients(pair):
    pair.train()
    state = copy.deepcopy(pair.theirs.state_dict())
    theirs, ours = pair.their_losses(), pair.our_losses()
    for name, value in ours.items():
        torch.testing.assert_close(value.double(), theirs[name].double(), rtol=1e-6, atol=0)
        assert value > 0.001
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    zeros = {name: torch.zeros_like(value) for name, value in pair.theirs.state_dict().items()}
    expected = from_torchvision_faster_rcnn(
        {name: zero if gradients.get(name) is None else gradients[name] for name, zero in zeros.items()}
    )
    compared = 0
    for name, parameter in pair.ours.named_parameters():
        wanted = expected[name]
        tolerance = 1e-6 * wanted.abs().max().item() + 1e-12
        if not wanted.any():  # torchvision keeps what its weights' frozen layers hold
            continue
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023
        compared += parameter.numel()
    assert compared > 0.9 * sum(p.numel() for p in pair.ours.parameters())
    running = from_torchvision_faster_rcnn(pair.theirs.state_dict())
    for name, buffer in pair.ours.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(buffer, running[name], rtol=1e-5, atol=1e-7)
    pair.theirs.load_state_dict(state)
    pair.ours.load_state_dict(from_torchvision_faster_rcnn(state))


def test_detections(pair):
    pair.train(False)
    with torch.no_grad():
        expected = pair.theirs(list(pair.images))
        found = pair.ours.detect(pair.ours(pair.images), pair.image_size)
    for i, wanted in enumerate(expected):
        count = len(wanted["scores"])
        assert count == 30 and len(wanted["labels"].unique()) > 1
        assert (found["labels"][i] >= 0).sum() == count
        torch.testing.assert_close(found["scores"][i, :count], wanted["scores"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["boxes"][i, :count], wanted["boxes"], rtol=1e-9, atol=1e-9)
        assert torch.equal(found["labels"][i, :count], wanted["labels"] - 1)


def test_weights_are_loaded_for_other_classes(pair, tmp_path, caplog):
    state = {name: value.float() for name, value in pair.theirs.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pth")
    form = pair.ours.form
    network = FasterRCNN(num_classes=CLASSES, form=form)
    load_weights(network, tmp_path / "theirs.pth")
    for name, value in pair.ours.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value.to(network.state_dict()[name].dtype))
    other = FasterRCNN(num_classes=2, form=form)
    load_weights(other, tmp_path / "theirs.pth", class_names=["cat", "dog"])
    theirs, ours = network.state_dict(), other.state_dict()
    assert "7 classes" in caplog.text
    layer = "roi_head.box_head.fc1.weight" if form == "torchvision_v1" else "roi_head.box_head.fc.weight"
    assert torch.equal(ours[layer], theirs[layer])
    assert torch.equal(ours["roi_head.predictor.background.bias"], theirs["roi_head.predictor.background.bias"])
    assert ours["roi_head.predictor.box_codes.weight"].shape == (8, 1024)


def test_numbers_of_parameters():
    published = {"v1": 41_755_286, "v2": 43_712_278}
    for version, make in (("v1", fasterrcnn_resnet50_fpn), ("v2", fasterrcnn_resnet50_fpn_v2)):
        with torch.device("meta"):
            theirs = make(weights=None, weights_backbone=None)
            if version == "v1":
                freeze_norms(theirs.backbone.body)
            ours = FasterRCNN(num_classes=90, form=f"torchvision_{version}")
        assert sum(p.numel() for p in theirs.parameters()) == published[version]
        # Four box codes of the background, which nothing reads, are not ours.
        assert sum(p.numel() for p in ours.parameters()) == published[version] - 4 * 1025
