"""YOLOv1: the sizes of its forms, targets and responsible boxes by hand, darknet's gradient, two pictures by heart."""

import math

import pytest
import torch
import torch.nn.functional as F

from errors import UserError
from models.detection.yolo.yolo_v1 import VARIANTS, CellTargets, YOLOv1
from models.detection.yolo.yolo_v1_head import GridOutputs, GridPrediction, LocallyConnected
from tests.models.yolo_cases import assert_finds_all, iou, make_targets, overfit, random_targets, real_objects
from tools.model_table import count_macs

SIZE = torch.tensor([[128, 128]])  # 2 x 2 cells


@pytest.fixture
def thin():
    torch.manual_seed(0)
    return YOLOv1(num_classes=3, width=1 / 16, image_size=128)


def test_published_size():
    with torch.device("meta"):
        network = YOLOv1(num_classes=20, variant="cfg")
    assert sum(p.numel() for p in network.parameters()) == network.published["parameters"] == 197_301_875
    assert 2 * count_macs(network, 448) / 1e9 == pytest.approx(40.42, abs=0.01)
    assert count_macs(network, 448) == pytest.approx(network.published["macs"], rel=1e-3)


def test_size_of_the_papers_network():
    # Figure 3, layer by layer: filters and kernel; convolutions have biases and no normalisation.
    layers = [(64, 7), (192, 3), (128, 1), (256, 3), (256, 1), (512, 3)]
    layers += [(256, 1), (512, 3)] * 4 + [(512, 1), (1024, 3)] + [(512, 1), (1024, 3)] * 2 + [(1024, 3)] * 4
    expected, channels = 0, 3
    for filters, kernel in layers:
        expected += filters * (channels * kernel**2 + 1)
        channels = filters
    expected += 4096 * (7 * 7 * 1024 + 1) + 7 * 7 * 30 * (4096 + 1)
    with torch.device("meta"):
        network = YOLOv1(num_classes=20)
        grid = network(torch.empty(1, 3, 448, 448))["grid"]
    assert sum(p.numel() for p in network.parameters()) == expected == 271_703_550
    assert grid.boxes.shape == (1, 49, 2, 4)  # 98 boxes
    assert network.published["parameters"] is None


def test_size_of_fast_yolo():
    # cfg/yolov1-tiny.cfg: 3 x 3 kernels, four numbers of batch normalisation a filter, of which two are parameters.
    expected, channels = 0, 3
    for filters in (16, 32, 64, 128, 256, 512, 1024, 256):
        expected += filters * (channels * 9 + 2)
        channels = filters
    expected += 7 * 7 * 30 * (7 * 7 * 256 + 1)
    with torch.device("meta"):
        network = YOLOv1(num_classes=20, variant="fast")
        grid = network(torch.empty(1, 3, 448, 448))["grid"]
    assert sum(p.numel() for p in network.parameters()) == expected == network.published["parameters"] == 27_095_374
    assert grid.boxes.shape == (1, 49, 2, 4)


def test_wrong_arguments(thin):
    with pytest.raises(UserError, match="no variant 'book': choose one of paper, cfg, fast"):
        YOLOv1(num_classes=1, variant="book")
    with pytest.raises(UserError, match="image_size 100"):
        YOLOv1(num_classes=1, image_size=100, width=1 / 32)
    with pytest.raises(UserError, match=r"192 x 128 pixels .* 128 x 128: set data.image_size"):
        thin(torch.rand(1, 3, 192, 128))


def test_locally_connected_is_a_convolution_of_its_own_at_every_place():
    torch.manual_seed(0)
    layer = LocallyConnected(2, 4, 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 2, 3, 3)
    result = layer(x)
    for place in range(9):
        row, column = divmod(place, 3)
        everywhere = F.conv2d(x, layer.weight[place].view(4, 2, 3, 3), padding=1)
        expected = F.leaky_relu(everywhere[..., row, column] + layer.bias.view(4, 9)[:, place], 0.1)
        torch.testing.assert_close(result[..., row, column], expected)


def test_order_of_the_last_layer():
    head = GridPrediction(1, 2, 2, 3)  # 2 cells, 2 boxes
    with torch.no_grad():
        head.boxes.weight.zero_()
        head.boxes.bias.copy_(torch.arange(20.0))
        head.classes.weight.zero_()
        head.classes.bias.copy_(torch.arange(6.0))
    boxes, confidences, classes = head(torch.ones(1, 1))
    assert confidences[0].tolist() == [[0, 1], [2, 3]]
    assert boxes[0].tolist() == [[[4, 5, 6, 7], [8, 9, 10, 11]], [[12, 13, 14, 15], [16, 17, 18, 19]]]
    assert classes[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    # darknet: classes of all cells, confidences of all boxes, boxes.
    assert head.darknet_rows(3).tolist() == [*range(20, 26), *range(20)]


def test_assignment_by_hand(thin):
    targets = make_targets(
        [
            (10, 20, 42, 52, "crowd"),  # centre (26, 36), in cell 0
            (70, 64, 102, 128, 2),  # centre (86, 96), in cell 3
            (80, 80, 90, 90, 1),  # centre (85, 85), in cell 3 as well: too late
            (0, 0, 128, 100, 0),  # centre (64, 50), the left border of cell 1
        ],
        [(118, 118, 138, 138, 1), (5, 5, 5, 9, 1)],  # the corner of the picture, and an empty box
    )
    wanted = thin.assign(targets)
    assert wanted.cell.tolist() == [[0, 3, 3, 1], [3, 0, 0, 0]]
    assert wanted.valid.tolist() == [[False, True, False, True], [True, False, False, False]]
    torch.testing.assert_close(wanted.boxes[0, 1], torch.tensor([22 / 64, 32 / 64, 32 / 128, 64 / 128]))
    torch.testing.assert_close(wanted.boxes[0, 3], torch.tensor([0, 50 / 64, 1, 100 / 128]))


def responsible(thin, object_, *boxes):
    wanted = CellTargets(torch.tensor([[0]]), torch.tensor([[True]]), torch.tensor([[object_]]))
    position, overlap = thin.responsible(torch.tensor([[boxes]]), wanted)
    return position.item(), overlap.item()


def test_responsible_box_by_hand(thin):
    # Raw boxes hold square roots of their sides. The object is 32 pixels wide and high, centred in its cell.
    object_ = (0.5, 0.5, 0.25, 0.25)
    assert responsible(thin, object_, (0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5)) == (1, 1)
    assert responsible(thin, object_, (0.5, 0.5, 1.0, 0.5), (0.5, 0.5, 1.0, 1.0)) == (0, 0.25)
    # 16 pixels beside it: a third.
    position, overlap = responsible(thin, object_, (0.75, 0.5, 0.5, 0.5), (0.9, 0.5, 0.5, 0.5))
    assert (position, overlap) == (0, pytest.approx(1 / 3))
    # The sign of a square root does not matter.
    assert responsible(thin, object_, (0.5, 0.5, 1.0, 1.0), (0.5, 0.5, -0.5, -0.5)) == (1, 1)


def test_without_any_overlap_the_nearest_box_is_responsible(thin):
    object_ = (0.5, 0.5, 0.25, 0.25)
    # Beyond the picture at the right, 4 cells off and 3 cells off, both as large as the object.
    assert responsible(thin, object_, (4.5, 0.5, 0.5, 0.5), (3.5, 0.5, 0.5, 0.5)) == (1, 0)
    # Places count in shares of the input: a cell is half of it here. Equal places, of which the second has the size.
    assert responsible(thin, object_, (2.5, 0.5, 0.1, 0.1), (2.5, 0.5, 0.5, 0.4)) == (1, 0)
    # One cell further (.5) costs more than a size that is wrong by .4.
    assert responsible(thin, object_, (2.5, 0.5, 0.8, 0.5), (3.5, 0.5, 0.5, 0.5)) == (0, 0)
    # A box that overlaps, however little, comes before one that is nearer.
    assert responsible(thin, object_, (0.5, 0.5, 0.0, 0.0), (0.5, 1.0, 1.0, 1.0))[0] == 1


def empty_outputs(images=1, boxes=2):
    return {
        "grid": GridOutputs(torch.zeros(images, 4, boxes, 4), torch.zeros(images, 4, boxes), torch.zeros(images, 4, 3))
    }


def test_loss_by_hand(thin):
    # Centre (72, 32): cell 1, an eighth from its left border, half from the upper one; 64 x 32 pixels.
    targets = make_targets([(40, 16, 104, 48, 2)])
    outputs = empty_outputs()
    grid = outputs["grid"]
    grid.boxes[0, 1, 1] = torch.tensor([0.5, 0.5, 0.5, 0.5])  # a square of 32 pixels, 24 to the right: 24 x 32 common
    grid.confidences[0] = torch.tensor([[0.1, 0.2], [0.3, 0.6], [0, 0], [-0.4, 0]])
    grid.classes[0, 1] = torch.tensor([0.2, 0, 0.7])
    terms = thin.loss_terms(outputs, targets, SIZE)
    overlap = 24 * 32 / (32 * 32 + 64 * 32 - 24 * 32)
    box = (0.5 - 0.125) ** 2 + 0 + (0.5 - math.sqrt(0.5)) ** 2 + (0.5 - math.sqrt(0.25)) ** 2
    objectness = (0.6 - overlap) ** 2 + 0.5 * (0.1**2 + 0.2**2 + 0.3**2 + 0.4**2)
    values = {name: term.value().item() for name, term in terms.items()}
    assert values == {
        "box_loss": pytest.approx(5 * box / 2),
        "objectness_loss": pytest.approx(objectness / 2),
        "class_loss": pytest.approx((0.2**2 + 0.3**2) / 2),
    }
    thin.rescore = False
    changed = thin.loss_terms(outputs, targets, SIZE)["objectness_loss"].value().item()
    assert changed == pytest.approx((objectness - (0.6 - overlap) ** 2 + 0.4**2) / 2)


def test_decoding_by_hand(thin):
    outputs = empty_outputs()
    grid = outputs["grid"]
    grid.boxes[0, 2, 1] = torch.tensor([0.25, 0.5, 0.5, -1.0])  # row 1, column 0
    grid.confidences[0, 2, 1] = 0.5
    grid.classes[0, 2] = torch.tensor([0.1, 0.8, 0])
    boxes, scores = thin.boxes_and_scores(outputs)
    assert boxes.shape == (1, 8, 4)
    assert boxes[0, 5].tolist() == [16 - 16, 96 - 64, 16 + 16, 96 + 64]
    torch.testing.assert_close(scores[0, 5], torch.tensor([0.05, 0.4, 0]))
    found = thin.detect(outputs, SIZE)
    assert found["labels"][0].tolist()[:3] == [1, 0, -1]
    assert found["boxes"][0, 0].tolist() == [0, 32, 32, 128]


def darknet_gradient(grid, targets):
    """The deltas of darknet's loops over cells and boxes: negative gradients of an image's loss."""
    delta = GridOutputs(*(torch.zeros_like(field) for field in grid))
    count = grid.boxes.shape[2]
    for b in range(len(grid.boxes)):
        objects, labels = real_objects(targets, b)
        truth = {}
        for box, label in zip(objects, labels, strict=True):
            x, y = ((box[:2] + box[2:]) / 2).tolist()
            truth.setdefault(int(y / 64) * 2 + int(x / 64), (box, x, y, label))
        for cell in range(4):
            delta.confidences[b, cell] = -0.5 * grid.confidences[b, cell]
            if cell not in truth:
                continue
            box, x, y, label = truth[cell]
            row, column = divmod(cell, 2)
            delta.classes[b, cell] = -grid.classes[b, cell]
            delta.classes[b, cell, label] += 1
            best, best_iou, best_rmse = -1, 0, 20
            for n in range(count):
                px, py, pw, ph = grid.boxes[b, cell, n].tolist()
                cx, cy, w, h = (column + px) * 64, (row + py) * 64, pw * pw * 128, ph * ph * 128
                overlap = iou(torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]), box)
                sides = (box[2:] - box[:2]).tolist()
                # darknet measures the distance of places from the corner of the cell, which is the same for both.
                rmse = math.hypot((cx - x) / 128, (cy - y) / 128, (w - sides[0]) / 128, (h - sides[1]) / 128)
                if best_iou > 0 or overlap > 0:
                    if overlap > best_iou:
                        best, best_iou = n, overlap
                elif rmse < best_rmse:
                    best, best_rmse = n, rmse
            delta.confidences[b, cell, best] = best_iou - grid.confidences[b, cell, best]
            shares = ((box[2:] - box[:2]) / 128).sqrt().tolist()
            wanted = torch.tensor([x / 64 - column, y / 64 - row, *shares])
            delta.boxes[b, cell, best] = 5 * (wanted - grid.boxes[b, cell, best])
    return delta


@pytest.mark.parametrize(("variant", "spread"), [("paper", 0.5), ("cfg", 0.5), ("cfg", 3.0)])
def test_gradient_is_that_of_darknet(variant, spread):
    torch.manual_seed(1)
    network = YOLOv1(num_classes=3, width=1 / 16, image_size=128, variant=variant)
    boxes = VARIANTS[variant].boxes
    grid = GridOutputs(*(torch.randn_like(f) * spread for f in empty_outputs(4, boxes)["grid"]))
    grid.boxes[..., 2:] /= 2 * spread
    leaves = GridOutputs(*(field.clone().requires_grad_() for field in grid))
    targets = random_targets(4, 128, 3, objects=3)
    terms = network.loss_terms({"grid": leaves}, targets, SIZE.repeat(4, 1))
    sum(term.value() for term in terms.values()).backward()
    expected = darknet_gradient(grid, targets)
    for name, leaf, wanted in zip(grid._fields, leaves, expected, strict=True):
        torch.testing.assert_close(-4 * leaf.grad, wanted, msg=name)  # the mean over four images
    assert (expected.boxes != 0).any(-1).sum() >= 8


def test_no_objects(thin):
    outputs = empty_outputs()
    outputs["grid"].confidences[:] = 2
    values = [term.value().item() for term in thin.loss_terms(outputs, make_targets([]), SIZE).values()]
    assert values == [0, 0.5 * 0.5 * 8 * 4, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_class_parameters(variant):
    network = YOLOv1(num_classes=3, width=1 / 16, image_size=128, variant=variant)
    state = network.state_dict()
    assert {len(state[name]) for name in network.class_parameters()} == {4 * 3}  # cells x classes


@pytest.mark.parametrize(("variant", "lr"), [("paper", 2e-3), ("cfg", 1e-2)])
def test_overfits_two_pictures(variant, lr):
    torch.manual_seed(0)
    network = YOLOv1(num_classes=3, width=1 / 16, image_size=128, variant=variant, bn_momentum=0.1, dropout=0)
    first, last, detections, targets = overfit(network, 128, steps=80, lr=lr, copies=4)
    assert last < first / 20
    assert_finds_all(detections, targets)
