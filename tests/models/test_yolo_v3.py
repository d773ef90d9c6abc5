"""YOLOv3: the authors' sizes, decoding and assignment by hand, darknet's gradient, two pictures learnt by heart."""

import math

import pytest
import torch

from errors import UserError
from models.detection.yolo.yolo_assign import assign_priors
from models.detection.yolo.yolo_head import PriorPrediction, prior_grid
from models.detection.yolo.yolo_postprocess import YOLOPostprocessor
from models.detection.yolo.yolo_v3 import COCO_PRIORS, YOLOv3
from tests.models.yolo_cases import assert_finds_all, iou, make_targets, overfit, random_targets, real_objects
from tools.model_table import count_macs

PRIORS = [torch.tensor(COCO_PRIORS[i : i + 3], dtype=torch.float32) for i in (0, 3, 6)]


@pytest.fixture(scope="module")
def thin():
    torch.manual_seed(0)
    return YOLOv3(num_classes=3, width=1 / 16, image_size=64)


def test_published_sizes():
    with torch.device("meta"):
        network = YOLOv3(num_classes=80)
        assert network(torch.empty(1, 3, 416, 416))["objectness"].shape == (1, 10647)
    assert sum(p.numel() for p in network.parameters()) == network.published["parameters"] == 61_949_149
    operations = [2 * count_macs(network, size) / 1e9 for size in (320, 416, 608)]
    assert operations == pytest.approx([38.97, 65.86, 140.69], abs=0.01)  # as darknet prints them
    assert count_macs(network, 416) == pytest.approx(network.published["macs"], rel=1e-3)


def test_another_network_has_no_published_figures(thin):
    assert thin.published == {}


def test_outputs(thin):
    outputs = thin(torch.rand(2, 3, 64, 96))
    assert outputs["sizes"] == [(8, 12), (4, 6), (2, 3)]
    count = 3 * (96 + 24 + 6)
    shapes = {name: tuple(outputs[name].shape) for name in ("codes", "objectness", "class_logits")}
    assert shapes == {"codes": (2, count, 4), "objectness": (2, count), "class_logits": (2, count, 3)}
    boxes, scores = thin.boxes_and_scores(outputs)
    torch.testing.assert_close(scores, outputs["objectness"].sigmoid()[..., None] * outputs["class_logits"].sigmoid())
    # Prior 1 of the cell in row 1, column 2 of the middle level, and its neighbours in the order of predictions.
    row = 3 * 96 + 3 * (1 * 6 + 2) + 1
    code = outputs["codes"][0, row]
    x, y = (2 + code[0].sigmoid()) * 16, (1 + code[1].sigmoid()) * 16
    w, h = 62 * code[2].exp(), 45 * code[3].exp()
    torch.testing.assert_close(boxes[0, row], torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2]))


@pytest.mark.parametrize("size", [(64, 48), (33, 64)])
def test_wrong_size(thin, size):
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} pixels .* multiples of 32"):
        thin(torch.rand(1, 3, *size))


@pytest.mark.parametrize("priors", [[(1, 2)] * 4, [(1, 2), (3, 0), (5, 6)], [(1, 2, 3)] * 3, []])
def test_wrong_priors(priors):
    with pytest.raises(UserError, match="YOLOv3's priors"):
        YOLOv3(num_classes=1, width=1 / 32, priors=priors)


def test_pixels_go_from_0_to_1_and_padding_is_grey(thin):
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    images[..., 0, 0] = 0
    pixels = thin.preprocess(images, torch.tensor([[2, 3]]))
    expected = torch.tensor([[0, 1, 1, 0.5], [1, 1, 1, 0.5], [0.5] * 4, [0.5] * 4])
    torch.testing.assert_close(pixels, expected.expand(1, 3, 4, 4))


def test_predictions_are_ordered_by_cell_then_prior():
    head = PriorPrediction(1, 2, 3)
    with torch.no_grad():
        head.boxes.weight.zero_()
        head.boxes.bias.copy_(torch.arange(10.0))
        head.classes.weight.fill_(1)
        head.classes.bias.copy_(torch.arange(6.0) * 100)
    codes, objectness, classes = head(torch.tensor([[[[1.0, 2], [3, 4]]]]))
    assert codes[0].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]] * 4
    assert objectness[0].tolist() == [4, 9] * 4
    assert classes[0, :4].tolist() == [[1, 101, 201], [301, 401, 501], [2, 102, 202], [302, 402, 502]]
    # darknet: x y w h objectness and the classes of prior 0, then those of prior 1.
    assert head.darknet_rows(3).tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 5, 6, 7, 8, 9, 13, 14, 15]


def test_decoding_by_hand():
    grid = prior_grid([(1, 2)], [32], [torch.tensor([[10.0, 20], [40, 80]])], torch.device("cpu"))
    codes = torch.zeros(1, 4, 4)
    codes[0, 3] = torch.tensor([math.log(3), -math.log(3), math.log(2), -math.log(2)])
    assert grid.decode(codes)[0, 0].tolist() == [16 - 5, 16 - 10, 16 + 5, 16 + 10]
    # Cell 1, prior 1: x = (1 + .75) 32 = 56, y = .25 32 = 8, w = 80, h = 40
    expected = torch.tensor([[56 - 40, 8 - 20, 56 + 40, 8 + 20.0]])
    torch.testing.assert_close(grid.decode(codes)[:, 3], expected)
    back = grid.rows(torch.tensor([[3]])).encode(expected[None])
    torch.testing.assert_close(back, torch.tensor([[[0.75, 0.25, math.log(2), -math.log(2)]]]))


def test_assignment_by_hand():
    targets = make_targets(
        # Like (33, 23), prior 2 of the finest level, centre (100, 50): column 12, row 6.
        # Like (373, 326), prior 2 of the coarsest level, centre (208, 208): column 6, row 6.
        [(84, 38, 116, 62, 0), (21, 45, 395, 371, 1), (84, 38, 116, 62, "crowd"), (84, 38, 84, 62, 1)],
        # Two of nearly the same shape with centres in one cell: the last has the prior.
        [(84, 38, 116, 62, 0), (84, 38, 117, 62, 2)],
    )
    sizes = [(52, 52), (26, 26), (13, 13)]
    prior, valid, owns, positive = assign_priors(targets, sizes, [8, 16, 32], PRIORS)
    small = 3 * (6 * 52 + 12) + 2
    large = 3 * (52 * 52 + 26 * 26 + 6 * 13 + 6) + 2
    assert prior.tolist() == [[small, large, 0, 0], [small, small, 0, 0]]
    assert valid.tolist() == [[True, True, False, False]] * 2
    assert owns.tolist() == [[True, True, False, False], [False, True, False, False]]
    assert positive.shape == (2, 10647)
    assert [row.nonzero().flatten().tolist() for row in positive] == [[small, large], [small]]


@pytest.mark.parametrize(("edge", "cell"), [(0, 0), (64, 7)])
def test_centre_on_the_border_belongs_to_the_last_cell(edge, cell):
    targets = make_targets([(edge - 5, edge - 6, edge + 5, edge + 6, 0)])
    prior = assign_priors(targets, [(8, 8), (4, 4), (2, 2)], [8, 16, 32], PRIORS).prior
    assert prior[0, 0] == 3 * (cell * 8 + cell)


def empty_outputs(images=1, objectness=0.0):
    """All predictions of 64 x 64 pixels: the priors in the middle of their cells."""
    count = 3 * (64 + 16 + 4)
    return {
        "codes": torch.zeros(images, count, 4),
        "objectness": torch.full((images, count), objectness),
        "class_logits": torch.zeros(images, count, 3),
        "sizes": [(8, 8), (4, 4), (2, 2)],
    }


def test_loss_by_hand(thin):
    # The prior (30, 61) of the middle level in row 1, column 2, whose centre is (40, 24); twice as wide, to the right.
    targets = make_targets([(44 - 30, 24 - 30.5, 44 + 30, 24 + 30.5, 1)])
    terms = thin.loss_terms(empty_outputs(), targets, torch.tensor([[64, 64]]))
    scale = 2 - 60 * 61 / 64**2
    place = -(0.75 * math.log(0.5) + 0.25 * math.log(0.5)) - math.log(0.5)
    size = math.log(60 / 62) ** 2 / 2 + math.log(61 / 45) ** 2 / 2  # (62, 45) is the better shape
    torch.testing.assert_close(terms["box_loss"].value(), torch.tensor(scale * (place + size)))
    torch.testing.assert_close(terms["class_loss"].value(), torch.tensor(3 * math.log(2)))
    assert terms["box_loss"].denominator.tolist() == [1]


def test_good_predictions_without_an_object_are_ignored(thin):
    # The object is a box of the middle level, (62, 45), centred in its cell at (40, 24).
    targets = make_targets([(40 - 31, 24 - 22.5, 40 + 31, 24 + 22.5, 0)])
    outputs = empty_outputs()
    grid = prior_grid(outputs["sizes"], [8, 16, 32], PRIORS, torch.device("cpu"))
    boxes = grid.decode(outputs["codes"])[0]
    overlaps = torch.tensor([iou(box, targets["boxes"][0, 0]) for box in boxes])
    own = 3 * 64 + 3 * (1 * 4 + 2) + 1
    assert overlaps[own] == 1
    left_out = overlaps > 0.7
    left_out[own] = False
    count = len(boxes)
    counted = thin.loss_terms(outputs, targets, torch.tensor([[64, 64]]))["objectness_loss"].value()
    torch.testing.assert_close(counted, (count - left_out.sum()) * math.log(2))
    # A prediction elsewhere that comes to lie on the object is let off too.
    other = 3 * 64 + 3 * (1 * 4 + 1) + 1  # one cell to the left
    outputs["codes"][0, other, 0] = 20
    moved = thin.loss_terms(outputs, targets, torch.tensor([[64, 64]]))["objectness_loss"].value()
    assert overlaps[other] < 0.7
    torch.testing.assert_close(moved, counted - math.log(2))


def test_objects_that_share_a_prior(thin):
    box = (9, 1.5, 71, 46.5)
    targets = make_targets([(*box, 0), (*box, 2)])
    outputs = empty_outputs()
    outputs["class_logits"][:] = torch.tensor([5.0, -4, 3])
    terms = thin.loss_terms(outputs, targets, torch.tensor([[64, 64]]))
    # One prior with classes 0 and 2, counted once.
    expected = sum(math.log1p(math.exp(-x)) for x in (5, 4, 3))
    torch.testing.assert_close(terms["class_loss"].value(), torch.tensor(expected))


def test_no_objects(thin):
    terms = thin.loss_terms(empty_outputs(), make_targets([]), torch.tensor([[64, 64]]))
    assert terms["box_loss"].value() == terms["class_loss"].value() == 0
    torch.testing.assert_close(terms["objectness_loss"].value(), torch.tensor(252 * math.log(2)))


def darknet_gradient(outputs, targets, strides, priors, ignore):
    """The deltas that darknet's loops write (negative gradients of an image's loss), one prediction after another."""
    codes, objectness, logits = (outputs[k].sigmoid() for k in ("codes", "objectness", "class_logits"))
    grid = prior_grid(outputs["sizes"], strides, priors, torch.device("cpu"))
    decoded = grid.decode(outputs["codes"])
    deltas = {k: torch.zeros_like(outputs[k]) for k in ("codes", "objectness", "class_logits")}
    shapes = torch.cat(priors).tolist()
    height, width = (side * strides[0] for side in outputs["sizes"][0])
    for b in range(len(codes)):
        boxes, labels = real_objects(targets, b)
        for a in range(codes.shape[1]):
            best = max(iou(decoded[b, a], box) for box in boxes)
            deltas["objectness"][b, a] = 0 if best > ignore else -objectness[b, a]
        for box, label in zip(boxes, labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            w, h, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
            overlap = [min(w, p) * min(h, q) / (w * h + p * q - min(w, p) * min(h, q)) for p, q in shapes]
            best = overlap.index(max(overlap))
            level, slot = best // 3, best % 3
            columns = outputs["sizes"][level][1]
            start = 3 * sum(r * c for r, c in outputs["sizes"][:level])
            i, j = int(x / strides[level]), int(y / strides[level])
            a = start + 3 * (j * columns + i) + slot
            scale = 2 - w * h / (width * height)
            t = outputs["codes"][b, a]
            deltas["codes"][b, a] = scale * torch.stack(
                [
                    x / strides[level] - i - codes[b, a, 0],
                    y / strides[level] - j - codes[b, a, 1],
                    math.log(w / shapes[best][0]) - t[2],
                    math.log(h / shapes[best][1]) - t[3],
                ]
            )
            deltas["objectness"][b, a] = 1 - objectness[b, a]
            if deltas["class_logits"][b, a, label] == 0:
                deltas["class_logits"][b, a] = -logits[b, a]
            deltas["class_logits"][b, a, label] = 1 - logits[b, a, label]
    return deltas


def test_gradient_is_that_of_darknet():
    torch.manual_seed(3)
    network = YOLOv3(num_classes=3, width=1 / 32, ignore_iou=0.3)  # so low that random predictions exceed it
    outputs = empty_outputs(images=2)
    leaves = {k: (torch.randn_like(outputs[k]) * 0.3).requires_grad_() for k in ("codes", "objectness", "class_logits")}
    outputs |= leaves
    targets = random_targets(2, 64, 3, objects=6)
    expected = darknet_gradient(
        {k: v.detach() if k in leaves else v for k, v in outputs.items()}, targets, [8, 16, 32], PRIORS, 0.3
    )
    terms = network.loss_terms(outputs, targets, torch.tensor([[64, 64]] * 2))
    sum(term.value() for term in terms.values()).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(-2 * leaf.grad, expected[name], msg=name)  # the mean over two images
    assert (expected["objectness"] == 0).any() and (expected["objectness"] > 0).sum() >= 8


def test_loss_of_a_batch_is_the_mean_of_its_images(thin):
    torch.manual_seed(0)
    targets = random_targets(2, 64, 3)
    size = torch.tensor([[64, 64]] * 2)
    outputs = empty_outputs(images=2)
    outputs |= {k: torch.randn_like(v) for k, v in outputs.items() if k != "sizes"}
    together = thin.loss_terms(outputs, targets, size)
    for i in range(2):
        one = {k: v if k == "sizes" else v[i : i + 1] for k, v in outputs.items()}
        alone = thin.loss_terms(one, {k: v[i : i + 1] for k, v in targets.items()}, size[:1])
        for name, term in alone.items():
            torch.testing.assert_close(term.value(), together[name].numerator[i])
            torch.testing.assert_close(together[name].value(), together[name].numerator.mean())


def test_postprocessing():
    boxes = torch.tensor([[[-5.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 11], [40, 40, 70, 80]]])
    scores = torch.tensor([[[0.9, 0], [0.2, 0.6], [0.8, 0.003], [0.0, 0.7]]])
    found = YOLOPostprocessor(max_detections=5)(boxes, scores, torch.tensor([[60, 50]]))
    assert found["labels"].tolist() == [[0, 1, 1, -1, -1]]
    torch.testing.assert_close(found["scores"], torch.tensor([[0.9, 0.7, 0.6, 0, 0]]))
    assert found["boxes"][0, :3].tolist() == [[0, 0, 10, 10], [40, 40, 50, 60], [0, 0, 10, 10]]


def test_class_parameters(thin):
    names = thin.class_parameters()
    state = thin.state_dict()
    assert len(names) == 6
    assert {len(state[name]) for name in names} == {3 * 3}  # priors of a cell x classes


def test_overfits_two_pictures():
    torch.manual_seed(0)
    network = YOLOv3(
        num_classes=3, width=1 / 16, image_size=64, bn_momentum=0.1, priors=[(w / 2, h / 2) for w, h in COCO_PRIORS]
    )
    first, last, detections, targets = overfit(network, 64, steps=120, lr=1e-2)
    assert last < first / 20
    assert_finds_all(detections, targets)
