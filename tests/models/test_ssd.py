"""SSD's forms and parts; parity with torchvision is in tests/parity."""

import math

import pytest
import torch
import torch.nn.functional as F

from errors import UserError
from models.backbones.ssd_vgg import SSDVGG
from models.detection.box_coder import BoxCoder
from models.detection.default_boxes import DefaultBoxes
from models.detection.losses.hard_negative_loss import HardNegativeLoss
from models.detection.matcher import IGNORED, NEGATIVE
from models.detection.postprocessing.softmax_postprocess import SoftmaxPostprocessor
from models.detection.ssd import FORMS, SSD
from tools.model_table import count_macs

TARGETS = {
    "boxes": torch.tensor([[[10.0, 20, 60, 60], [0, 0, 0, 0]], [[5, 5, 120, 60], [80, 70, 127, 120]]]),
    "labels": torch.tensor([[2, -1], [0, 1]]),
    "iscrowd": torch.zeros(2, 2, dtype=torch.bool),
}
SIZE = torch.tensor([[128, 128]] * 2)


def tiny(**options):
    torch.manual_seed(0)
    return SSD(num_classes=3, **{"image_size": 128, "levels": 4, "width": 0.125, "norm": "batch"} | options)


@pytest.mark.parametrize(("num_classes", "parameters"), [(90, 35_641_826), (80, 34_305_206), (20, 26_285_486)])
def test_published_parameters(num_classes, parameters):
    with torch.device("meta"):
        network = SSD(num_classes=num_classes)
    assert sum(p.numel() for p in network.parameters()) == parameters == network.published["parameters"]


def test_macs_of_torchvision():
    with torch.device("meta"):
        network = SSD(num_classes=90, form="300_torchvision")
        fewer = SSD(num_classes=20, form="300_torchvision")
    assert count_macs(network, 300) == pytest.approx(34.858e9, rel=1e-4)
    assert count_macs(fewer, 300) == pytest.approx(fewer.published["macs"], rel=1e-4)
    assert network.published["COCO val AP"] == 25.1


@pytest.mark.parametrize(
    ("form", "maps", "count"), [("300_voc", [38, 19, 10, 5, 3, 1], 8732), ("512_voc", [64, 32, 16, 8, 4, 2, 1], 24_564)]
)
def test_maps_and_default_boxes(form, maps, count):
    with torch.device("meta"):
        network = SSD(num_classes=20, form=form)
        size = network.image_size
        outputs = network(torch.empty(1, 3, size, size))
    assert outputs["sizes"] == [(side, side) for side in maps]
    assert sum(x.shape[1] for x in outputs["class_logits"]) == count
    assert len(network.anchors(outputs["sizes"])) == count
    assert network.published.items() >= FORMS[form].results.items()


def test_default_boxes_in_the_order_of_the_authors():
    boxes = DefaultBoxes(image_size=100, strides=(50, 100), scales=(0.2, 0.8, 1.25), ratios=((2,), (2, 3)))
    assert boxes.anchors_per_cell == [4, 6]
    found = boxes([(2, 2), (1, 1)])
    assert found.shape == (4 * 4 + 6, 4)
    sides = found[:, 2:] - found[:, :2]
    root = math.sqrt(2)
    expected = [[20, 20], [40, 40], [20 * root, 20 / root], [20 / root, 20 * root]]
    torch.testing.assert_close(sides[:4], torch.tensor(expected))
    torch.testing.assert_close(sides[16:18], torch.tensor([[80.0, 80], [100, 100]]))
    torch.testing.assert_close(sides[20], torch.tensor([80 * math.sqrt(3), 80 / math.sqrt(3)]))
    centres = (found[:16:4, 2:] + found[:16:4, :2]) / 2
    assert centres.tolist() == [[25, 25], [75, 25], [25, 75], [75, 75]]
    clipped = DefaultBoxes(
        image_size=100, strides=(50, 100), scales=(0.2, 0.8, 1.25), ratios=((2,), (2, 3)), clip=True
    )([(2, 2), (1, 1)])
    assert (clipped[:, 2:] - clipped[:, :2]).max().item() == 100


def test_scales_of_the_authors_programs():
    # ssd_pascal.py, ssd_coco.py: sides in pixels
    sides = {form: [round(300 * s) for s in FORMS[form].scales] for form in ("300_voc", "300_coco")}
    assert sides["300_voc"] == [30, 60, 111, 162, 213, 264, 315]
    assert sides["300_coco"] == [21, 45, 99, 153, 207, 261, 315]
    assert [round(512 * s, 2) for s in FORMS["512_voc"].scales[:3]] == [35.84, 76.8, 153.6]


def test_conv4_3_is_rescaled():
    torch.manual_seed(0)
    backbone = SSDVGG(width=0.125).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 300, 300))
    assert features[0].norm(dim=1).flatten().tolist() == pytest.approx([20.0] * 38**2, rel=1e-4)
    assert [f.shape[2] for f in features] == [38, 19, 10, 5, 3, 1]
    dilated = backbone.deep[8]
    assert (dilated.dilation, dilated.padding, dilated.kernel_size) == ((6, 6), (6, 6), (3, 3))


def test_frozen_stages():
    frozen = [name for name, p in SSDVGG(width=0.125, frozen_stages=2).named_parameters() if not p.requires_grad]
    assert {name.split(".")[1] for name in frozen} == {"0", "2", "5", "7"}
    assert not [name for name, p in SSDVGG(width=0.125).named_parameters() if not p.requires_grad]


def test_hardest_negatives_of_each_image():
    # Image 0: one positive, so three negatives; image 1: none, so none.
    background = torch.tensor([[0.0, 3.0, 1.0, 0.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    logits = torch.stack([background, torch.zeros(2, 6), torch.zeros(2, 6)], -1)
    labels = torch.full((2, 6), NEGATIVE)
    labels[0, 0] = 1
    labels[0, 5] = IGNORED  # the hardest, were it not ignored
    loss = HardNegativeLoss()([logits[:, :4], logits[:, 4:]], labels)
    each = F.cross_entropy(logits[0], torch.zeros(6, dtype=torch.int64), reduction="none")
    expected = math.log(3) + each[[3, 2, 4]].sum().item()
    assert loss.tolist() == pytest.approx([expected, 0.0])


def test_no_more_negatives_than_there_are():
    logits, labels = torch.zeros(1, 4, 3), torch.tensor([[0, 1, NEGATIVE, 0]])
    assert HardNegativeLoss()([logits], labels).tolist() == pytest.approx([4 * math.log(3)])


def test_postprocessing_takes_the_best_of_each_class():
    logits = torch.full((1, 3, 3), -9.0)  # background, two classes
    logits[0, :, 1] = torch.tensor([2.0, 1.0, 0.0])
    logits[0, 2, 2] = 1.5
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    post = SoftmaxPostprocessor(candidates_per_class=2, max_detections=5, score_threshold=0.3)
    found = post([logits], [torch.zeros(1, 3, 4)], anchors, BoxCoder(), torch.tensor([[48, 48]]))
    assert found["labels"].tolist() == [[0, 0, 1, -1, -1]]  # class 0 of the third anchor is its class's third
    assert found["boxes"][0, 2].tolist() == [40, 40, 48, 48]
    assert found["scores"][0, 2].item() == pytest.approx(logits[0, 2].softmax(0)[2].item())


def test_bad_settings():
    with pytest.raises(UserError, match="SSD has no form '300': choose one of 300_voc, 300_coco"):
        SSD(num_classes=3, form="300")
    with pytest.raises(UserError, match="SSD's levels 7 do not do: form 300_voc has 2 to 6"):
        SSD(num_classes=3, form="300_voc", levels=7)
    with pytest.raises(UserError, match="leave width at 1 and norm at null"):
        SSD(num_classes=3, width=0.5, pretrained_backbone=True)
    with pytest.raises(UserError, match=r"an input of 96 x 128 pixels does not suit this SSD, .* for 128 x 128"):
        tiny()(torch.zeros(1, 3, 96, 128))


@pytest.mark.parametrize("count", [0, 3])
def test_batches_without_objects(count):
    network = tiny()
    targets = {
        "boxes": torch.zeros(2, count, 4),
        "labels": torch.full((2, count), -1),
        "iscrowd": torch.zeros(2, count, dtype=torch.bool),
    }
    terms = network.loss_terms(network(torch.randn(2, 3, 128, 128)), targets, SIZE)
    assert [term.value().item() for term in terms.values()] == [0, 0]  # no positive, so no mined negative
    sum(term.value() for term in terms.values()).backward()


def test_a_change_of_classes_replaces_only_their_rows():
    network = tiny()
    shapes = {name: p.shape for name, p in tiny().named_parameters()}
    with torch.device("meta"):
        other = SSD(num_classes=8, image_size=128, levels=4, width=0.125, norm="batch")
    changed = {name for name, p in other.named_parameters() if p.shape != shapes[name]}
    assert changed == set(network.class_parameters())


def test_it_learns_two_pictures():
    network = tiny()
    images = torch.randn(2, 3, 128, 128)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        terms = network.loss_terms(network.train()(images), TARGETS, SIZE)
        loss = sum(term.value() for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    found = network.detect(network(images), SIZE)
    assert found["labels"][0, 0] == 2 and set(found["labels"][1, :2].tolist()) == {0, 1}
    assert (found["boxes"][0, 0] - TARGETS["boxes"][0, 0]).abs().max() < 10
