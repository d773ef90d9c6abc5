"""YOLOv2: the authors' sizes, darknet's reorg and gradient in plain loops, warm-up, two pictures learnt by heart."""

import copy
import math

import pytest
import torch

from errors import UserError
from models.detection.yolo.base import row_iou
from models.detection.yolo.yolo_assign import assign_priors
from models.detection.yolo.yolo_head import prior_grid
from models.detection.yolo.yolo_v2 import COCO_PRIORS, VOC_PRIORS, YOLOv2, reorganise
from tests.models.darknet_program import reorg
from tests.models.yolo_cases import assert_finds_all, iou, make_targets, overfit, random_targets, real_objects
from tools.model_table import count_macs

PRIORS = 32 * torch.tensor(COCO_PRIORS)
SIZE = torch.tensor([[96, 96]])
COUNT = 5 * 3 * 3


@pytest.fixture
def thin():
    torch.manual_seed(0)
    return YOLOv2(num_classes=3, width=1 / 16, image_size=96)


@pytest.mark.parametrize(
    ("num_classes", "priors", "parameters", "operations"),
    [(80, COCO_PRIORS, 50_962_889, (29.46, 62.94)), (20, VOC_PRIORS, 50_655_389, None)],
)
def test_published_sizes(num_classes, priors, parameters, operations):
    with torch.device("meta"):
        network = YOLOv2(num_classes=num_classes, priors=priors)
    assert sum(p.numel() for p in network.parameters()) == network.published["parameters"] == parameters
    if operations is not None:  # as darknet prints them for 416 and 608 pixels
        counted = [2 * count_macs(network, size) / 1e9 for size in (416, 608)]
        assert counted == pytest.approx(operations, abs=0.01)
        assert network.published["macs"] == pytest.approx(counted[0] * 1e9 / 2, rel=1e-3)


def test_another_network_has_no_published_figures(thin):
    assert thin.published == {}


def test_reorg_is_that_of_darknet():
    x = torch.arange(2.0 * 8 * 4 * 6).view(2, 8, 4, 6)
    for image, result in zip(x, reorganise(x), strict=True):
        assert torch.equal(result, reorg(image))


def test_reorg_by_hand():
    # 4 channels of 2 x 2 are read as one of 4 x 4: 0 1 2 3 / 4 5 6 7 / ...; its first quarter is 0 2 8 10.
    assert reorganise(torch.arange(16.0).view(1, 4, 2, 2)).flatten().tolist() == [
        *(0, 2, 8, 10),
        *(1, 3, 9, 11),
        *(4, 6, 12, 14),
        *(5, 7, 13, 15),
    ]


def test_papers_passthrough_stacks_neighbours():
    network = YOLOv2(num_classes=1, width=1 / 16, darknet_reorg=False)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert network.reorganise(x)[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert network(torch.rand(1, 3, 64, 64))["sizes"] == [(2, 2)]


def test_passthrough_comes_before_the_coarse_features(thin):
    # As in darknet's route layer: the first 4 x (a quarter of 64) channels of the fusing layer are the passthrough's.
    thin.eval()
    seen = []
    thin.fuse.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        thin(images)
        fine, coarse = thin.backbone(images)
        expected = torch.cat([reorganise(thin.passthrough(fine)), thin.coarse(coarse)], 1)
    torch.testing.assert_close(seen[0], expected)


def test_outputs(thin):
    outputs = thin(torch.rand(2, 3, 64, 96))
    assert outputs["sizes"] == [(2, 3)]
    assert [tuple(outputs[k].shape) for k in ("codes", "objectness", "class_logits")] == [
        (2, 30, 4),
        (2, 30),
        (2, 30, 3),
    ]
    boxes, scores = thin.boxes_and_scores(outputs)
    torch.testing.assert_close(scores.sum(-1), outputs["objectness"].sigmoid())
    # Prior 3 of the cell in row 1, column 2.
    code = outputs["codes"][1, 5 * 5 + 3]
    x, y = 32 * (2 + code[0].sigmoid()), 32 * (1 + code[1].sigmoid())
    w, h = 32 * 7.88282 * code[2].exp(), 32 * 3.52778 * code[3].exp()
    torch.testing.assert_close(boxes[1, 28], torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2]))


def test_wrong_size(thin):
    with pytest.raises(UserError, match="100 x 64 pixels does not suit YOLOv2"):
        thin(torch.rand(1, 3, 100, 64))


def empty_outputs(images=1):
    return {
        "codes": torch.zeros(images, COUNT, 4),
        "objectness": torch.zeros(images, COUNT),
        "class_logits": torch.zeros(images, COUNT, 3),
        "sizes": [(3, 3)],
    }


def test_loss_by_hand(thin):
    thin.eval()
    # As large as prior 1 (59.98 x 66.00), 8 pixels right of the middle of the middle cell.
    w, h = PRIORS[1].tolist()
    targets = make_targets([(56 - w / 2, 48 - h / 2, 56 + w / 2, 48 + h / 2, 1)])
    outputs = empty_outputs()
    terms = thin.loss_terms(outputs, targets, SIZE)
    scale = 2 - w * h / 96**2
    torch.testing.assert_close(terms["box_loss"].value(), torch.tensor(scale * 0.25**2 / 2))
    torch.testing.assert_close(terms["class_loss"].value(), torch.tensor(math.log(3)))
    assert terms["prior_loss"].value() == 0
    # The overlap of the responsible prediction, 8 pixels beside the object, is what its objectness should be.
    overlap = (w - 8) / (w + 8)
    boxes = prior_grid([(3, 3)], [32], [PRIORS], torch.device("cpu")).decode(outputs["codes"])[0]
    ignored = sum(iou(box, targets["boxes"][0, 0]) > 0.6 for box in boxes) - (overlap > 0.6)
    expected = (5 * (overlap - 0.5) ** 2 + (COUNT - 1 - ignored) * 0.25) / 2
    torch.testing.assert_close(terms["objectness_loss"].value(), torch.tensor(expected))
    # Without rescoring it should be 1.
    thin.rescore = False
    expected += 5 * (0.5**2 - (overlap - 0.5) ** 2) / 2
    torch.testing.assert_close(
        thin.loss_terms(outputs, targets, SIZE)["objectness_loss"].value(), torch.tensor(expected)
    )


def test_good_predictions_without_an_object_are_ignored(thin):
    w, h = PRIORS[1].tolist()
    targets = make_targets([(48 - w / 2, 48 - h / 2, 48 + w / 2, 48 + h / 2, 1)])
    outputs = empty_outputs()
    before = thin.loss_terms(outputs, targets, SIZE)["objectness_loss"].value()
    left = 5 * 3 + 1  # the same prior one cell to the left, moved half a cell to the right: 16 pixels off
    outputs["codes"][0, left, 0] = 20
    assert (w - 16) / (w + 16) < 0.6
    assert thin.loss_terms(outputs, targets, SIZE)["objectness_loss"].value() == before
    wide = 1.4 * w  # reaches over the left border of the object, and nearly to the right one
    outputs["codes"][0, left, 2] = math.log(1.4)
    common = 32 + wide / 2 - (48 - w / 2)
    assert 0.6 < common / (w + wide - common) < 0.65
    moved = thin.loss_terms(outputs, targets, SIZE)["objectness_loss"].value()
    torch.testing.assert_close(moved, before - 0.25 / 2)


def test_warm_up_draws_priors_to_their_shapes_for_a_number_of_images(thin):
    thin.train()
    thin.warmup_images = 5
    targets = random_targets(2, 96, 3)
    outputs = empty_outputs(images=2)
    outputs["codes"][:] = torch.tensor([0.0, 20, 1, -2])
    values = [thin.loss_terms(outputs, targets, SIZE.repeat(2, 1))["prior_loss"].value() for _ in range(3)]
    # Two images, then four, are fewer than five; six are not. darknet, too, counts before it asks.
    positive = assign_priors(targets, [(3, 3)], [32], [PRIORS]).positive.sum().item()
    expected = 0.01 / 2 * (2 * COUNT - positive) * (0.5**2 + 1 + 4) / 2
    torch.testing.assert_close(torch.stack(values), torch.tensor([expected, expected, 0]))
    assert thin.images_seen == 6
    assert thin.state_dict()["images_seen"] == 6  # a resumed training does not warm up again


def test_evaluation_does_not_count(thin):
    thin.eval()
    terms = thin.loss_terms(empty_outputs() | {"codes": torch.ones(1, COUNT, 4)}, random_targets(1, 96, 3), SIZE)
    assert terms["prior_loss"].value() == 0
    assert thin.images_seen == 0


def darknet_gradient(outputs, targets, *, warm, ignore):
    """The deltas of darknet's loops, through the sigmoids: negative gradients of an image's loss."""
    xy, objectness = outputs["codes"][..., :2].sigmoid(), outputs["objectness"].sigmoid()
    probabilities = outputs["class_logits"].softmax(-1)
    boxes = prior_grid([(3, 3)], [32], [PRIORS], torch.device("cpu")).decode(outputs["codes"])
    delta_xy, delta_wh = torch.zeros_like(xy), torch.zeros_like(xy)
    delta_o, delta_c = torch.zeros_like(objectness), torch.zeros_like(probabilities)
    for b in range(len(boxes)):
        objects, labels = real_objects(targets, b)
        for a in range(COUNT):
            best = max(iou(boxes[b, a], box) for box in objects)
            delta_o[b, a] = 0 if best > ignore else -objectness[b, a]
            if warm:
                delta_xy[b, a] = 0.01 * (0.5 - xy[b, a])
                delta_wh[b, a] = 0.01 * (0 - outputs["codes"][b, a, 2:])
        for box, label in zip(objects, labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            w, h, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
            overlap = [min(w, p) * min(h, q) / (w * h + p * q - min(w, p) * min(h, q)) for p, q in PRIORS.tolist()]
            n = overlap.index(max(overlap))
            i, j = int(x / 32), int(y / 32)
            a = 5 * (3 * j + i) + n
            scale = 2 - w * h / 96**2
            delta_xy[b, a] = scale * (torch.tensor([x / 32 - i, y / 32 - j]) - xy[b, a])
            wanted = torch.tensor([math.log(w / PRIORS[n, 0]), math.log(h / PRIORS[n, 1])])
            delta_wh[b, a] = scale * (wanted - outputs["codes"][b, a, 2:])
            delta_o[b, a] = 5 * (iou(boxes[b, a], box) - objectness[b, a])
            delta_c[b, a] = -probabilities[b, a]
            delta_c[b, a, label] += 1
    return {
        "codes": torch.cat([delta_xy * xy * (1 - xy), delta_wh], -1),
        "objectness": delta_o * objectness * (1 - objectness),
        "class_logits": delta_c,
    }


@pytest.mark.parametrize("warm", [True, False])
def test_gradient_is_that_of_darknet(thin, warm):
    torch.manual_seed(3)
    network = copy.copy(thin).train()
    network.ignore_iou = 0.1  # so low that random predictions exceed it
    network.warmup_images = 10 * warm
    outputs = empty_outputs(images=2)
    leaves = {k: (torch.randn_like(v) * 0.3).requires_grad_() for k, v in outputs.items() if k != "sizes"}
    outputs |= leaves
    targets = random_targets(2, 96, 3, objects=6)
    expected = darknet_gradient({k: v.detach() for k, v in leaves.items()}, targets, warm=warm, ignore=0.1)
    terms = network.loss_terms(outputs, targets, SIZE.repeat(2, 1))
    sum(term.value() for term in terms.values()).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(-2 * leaf.grad, expected[name], msg=name)  # the mean over two images
    assert (expected["objectness"] == 0).any()


def test_row_iou():
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 5, 5]])
    second = torch.tensor([[1.0, 0, 3, 2], [4, 4, 5, 5], [5, 5, 5, 5]])
    torch.testing.assert_close(row_iou(first, second), torch.tensor([1 / 3, 0, 0]))


def test_class_parameters(thin):
    state = thin.state_dict()
    assert {len(state[name]) for name in thin.class_parameters()} == {5 * 3}


def test_overfits_two_pictures():
    torch.manual_seed(0)
    network = YOLOv2(num_classes=3, width=1 / 8, image_size=96, bn_momentum=0.1, priors=[(1, 1), (1.5, 2), (2.5, 1.5)])
    first, last, detections, targets = overfit(network, 96, steps=100, lr=1e-2)
    assert last < first / 10
    assert_finds_all(detections, targets)
