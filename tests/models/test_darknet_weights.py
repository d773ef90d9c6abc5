"""Darknet's files of weights: literal bytes, the lengths of the authors' files, and a small darknet that runs them."""

import struct

import pytest
import torch
from torch import nn

from errors import UserError
from models.backbones.darknet import Darknet19, Darknet53, DarknetClassifier, DarknetConv, YOLOv1Backbone
from models.detection.weights import load_weights
from models.detection.yolo.darknet_weights import read_darknet, write_darknet
from models.detection.yolo.yolo_head import PriorPrediction
from models.detection.yolo.yolo_v1 import YOLOv1
from models.detection.yolo.yolo_v1_head import LocallyConnected
from models.detection.yolo.yolo_v2 import YOLOv2
from models.detection.yolo.yolo_v3 import YOLOv3
from tests.models import darknet_program as program

THIN = {
    "v3": lambda num_classes=3: YOLOv3(num_classes=num_classes, width=1 / 32),
    "v2": lambda num_classes=3: YOLOv2(num_classes=num_classes, width=1 / 16),
    "v1": lambda num_classes=3: YOLOv1(num_classes=num_classes, width=1 / 16, image_size=128, variant="cfg"),
    "v1 paper": lambda num_classes=3: YOLOv1(num_classes=num_classes, width=1 / 16, image_size=128),
}
BACKBONES = {
    "darknet19": lambda: Darknet19(width=1 / 32),
    "darknet53": lambda: DarknetClassifier(Darknet53(width=1 / 32), num_classes=7),
    "v1 backbone": lambda: YOLOv1Backbone(width=1 / 16),
}


def random_network(build, *arguments):
    """Of which every number is random."""
    torch.manual_seed(0)
    network = build(*arguments).eval()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5) if name.endswith("running_var") else nn.init.normal_(value, std=0.2)
    return network


def file_of(path, *numbers, major=0, minor=2, seen=0):
    seen = struct.pack("<Q" if (major, minor) == (0, 2) else "<I", seen)
    path.write_bytes(struct.pack("<3i", major, minor, 0) + seen + struct.pack(f"<{len(numbers)}f", *numbers))
    return path


def test_convolution_by_bytes(tmp_path):
    # Shifts of both filters, then scales, means, variances, then the kernels: filter, channel.
    numbers = (1.0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)
    state, num_classes = read_darknet(DarknetConv(3, 2, 1), file_of(tmp_path / "a.weights", *numbers))
    assert num_classes is None
    assert state["bn.bias"].tolist() == [1, 2]
    assert state["bn.weight"].tolist() == [3, 4]
    assert state["bn.running_mean"].tolist() == [5, 6]
    assert state["bn.running_var"].tolist() == [7, 8]
    assert state["conv.weight"].flatten().tolist() == [10, 11, 12, 13, 14, 15]


def test_convolution_without_normalisation_by_bytes(tmp_path):
    state, _ = read_darknet(DarknetConv(1, 2, 1, batch_norm=False), file_of(tmp_path / "a.weights", 1, 2, 3, 4))
    assert (state["conv.bias"].tolist(), state["conv.weight"].flatten().tolist()) == ([1, 2], [3, 4])


class One(nn.Module):
    """A detector that is nothing but its last layer."""

    def __init__(self, layer, num_classes):
        super().__init__()
        self.last = layer
        self.num_classes = num_classes


@pytest.mark.parametrize("own", [1, 2])
def test_prediction_by_bytes(tmp_path, own):
    # Two priors of two classes over one channel: x y w h o c c per prior, first the biases.
    path = file_of(tmp_path / "a.weights", *range(14), *range(100, 114))
    state, num_classes = read_darknet(One(PriorPrediction(1, 2, own), own), path)
    assert num_classes == 2
    assert state["last.boxes.bias"].tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert state["last.classes.bias"].tolist() == [5, 6, 12, 13]
    assert state["last.boxes.weight"].shape == (10, 1, 1, 1)
    assert state["last.classes.weight"].flatten().tolist() == [105, 106, 112, 113]


def test_locally_connected_by_bytes(tmp_path):
    # One channel, two filters, 2 x 2 places: biases by filter, kernels by place and filter.
    layer = LocallyConnected(1, 2, 2)
    state, _ = read_darknet(layer, file_of(tmp_path / "a.weights", *range(8), *range(100, 172)))
    assert state["bias"].tolist() == list(range(8))
    assert state["weight"][0, 0].tolist() == list(range(100, 109))
    assert state["weight"][0, 1].tolist() == list(range(109, 118))
    assert state["weight"][3, 1].tolist() == list(range(163, 172))


@pytest.mark.parametrize(("major", "weight"), [(0, [[3, 4, 5], [6, 7, 8]]), (1001, [[3, 5, 7], [4, 6, 8]])])
def test_fully_connected_by_bytes(tmp_path, major, weight):
    minor = 2 if major == 0 else 0
    path = file_of(tmp_path / "a.weights", *range(1, 9), major=major, minor=minor)
    state, _ = read_darknet(nn.Linear(3, 2), path)
    assert (state["bias"].tolist(), state["weight"].tolist()) == ([1, 2], weight)


@pytest.mark.parametrize(("minor", "length"), [(1, 16), (2, 20)])
def test_both_headers(tmp_path, minor, length):
    network = random_network(THIN["v2"])
    write_darknet(network, tmp_path / "a.weights", seen=123_456)
    data = (tmp_path / "a.weights").read_bytes()
    if minor == 1:
        data = struct.pack("<3iI", 0, 1, 0, 123_456) + data[20:]
    (tmp_path / "b.weights").write_bytes(data)
    state, _ = read_darknet(THIN["v2"](), tmp_path / "b.weights")
    assert state["images_seen"] == 123_456
    assert torch.equal(state["predict.boxes.weight"], network.predict.boxes.weight)
    assert len(data) == length + 4 * sum(
        v.numel() for k, v in network.state_dict().items() if v.is_floating_point() and k != "images_seen"
    )


@pytest.mark.parametrize("kind", [*THIN, *BACKBONES])
def test_what_is_written_is_read(tmp_path, kind):
    build = {**THIN, **BACKBONES}[kind]
    network = random_network(build)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    write_darknet(network, tmp_path / "a.weights", seen=0)
    other = build()
    untouched = {name: value.clone() for name, value in other.state_dict().items()}
    state, num_classes = read_darknet(other, tmp_path / "a.weights")
    assert num_classes == (3 if kind in THIN else None)
    assert all(torch.equal(value, untouched[name]) for name, value in other.state_dict().items())
    assert state.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    other.load_state_dict(state)


def darknet_order(outputs, priors):
    """Raw predictions of a level of ours -> (B, priors x (5 + K), H W), as darknet lays them out."""
    codes, objectness, classes = outputs
    together = torch.cat([codes, objectness[..., None], classes], -1)  # (B, H W n, 5 + K)
    return together.unflatten(1, (-1, priors)).permute(0, 2, 3, 1).flatten(1, 2)


def test_yolo_v3_runs_as_its_cfg(tmp_path):
    network = random_network(lambda: YOLOv3(num_classes=3, width=0.25))
    write_darknet(network, tmp_path / "a.weights")
    images = torch.rand(2, 3, 64, 96)
    numbers = program.Numbers(tmp_path / "a.weights")
    cfg = program.yolo_v3(4, 3)
    with torch.no_grad():
        theirs = [x for layer, x in zip(cfg, program.run(cfg, numbers, images), strict=True) if layer[0] == "linear"]
        ours = network(images)
    assert numbers.place == len(numbers.values)
    places = [3 * h * w for h, w in ours["sizes"]]
    levels = zip(*(ours[k].split(places, 1) for k in ("codes", "objectness", "class_logits")), strict=True)
    for level, expected in zip(levels, reversed(theirs), strict=True):
        expected = expected.flatten(2)
        torch.testing.assert_close(darknet_order(level, 3), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_yolo_v2_runs_as_its_cfg(tmp_path):
    network = random_network(lambda: YOLOv2(num_classes=3, width=0.25))
    write_darknet(network, tmp_path / "a.weights")
    images = torch.rand(2, 3, 64, 96)
    numbers = program.Numbers(tmp_path / "a.weights")
    with torch.no_grad():
        theirs = program.run(program.yolo_v2(4, 3), numbers, images)[-1].flatten(2)
        ours = network(images)
    assert numbers.place == len(numbers.values)
    ours = darknet_order([ours[k] for k in ("codes", "objectness", "class_logits")], 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max())


@pytest.mark.parametrize(
    ("variant", "width", "cfg", "boxes"),
    [("cfg", 1 / 8, program.yolo_v1, 3), ("fast", 1 / 2, program.yolo_v1_tiny, 2)],
)
def test_yolo_v1_runs_as_its_cfg(tmp_path, variant, width, cfg, boxes):
    network = random_network(lambda: YOLOv1(num_classes=4, width=width, image_size=192, variant=variant))
    write_darknet(network, tmp_path / "a.weights")
    images = torch.rand(2, 3, 192, 192)
    numbers = program.Numbers(tmp_path / "a.weights")
    with torch.no_grad():
        theirs = program.run(cfg(round(1 / width), 9 * (4 + boxes * 5)), numbers, images)[-1]
        boxes, confidences, classes = network(images)["grid"]
    assert numbers.place == len(numbers.values)
    # darknet: classes of all cells, confidences of all cells and boxes, boxes.
    ours = torch.cat([classes.flatten(1), confidences.flatten(1), boxes.flatten(1)], 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max())


def length(network):
    numbers = sum(value.numel() for name, value in network.state_dict().items() if not name.endswith(COUNTERS))
    return 4 * numbers


COUNTERS = ("num_batches_tracked", "images_seen")


# Lengths in bytes of the files that the authors publish; those of 2018 have the longer header.
@pytest.mark.parametrize(
    ("build", "header", "expected"),
    [
        (lambda: YOLOv3(num_classes=80), 20, 248_007_048),  # yolov3.weights
        (lambda: Darknet53(), 20, 162_482_580),  # darknet53.conv.74
        (lambda: YOLOv2(num_classes=80), 16, 203_934_260),  # yolov2.weights
        (lambda: YOLOv1(num_classes=20, variant="cfg"), 16, 789_312_988),  # yolov1.weights
    ],
)
def test_lengths_of_the_authors_files(build, header, expected):
    with torch.device("meta"):
        assert header + length(build()) == expected


@pytest.mark.parametrize("kind", ["v3", "v2", "v1"])
def test_file_of_another_number_of_classes(tmp_path, kind):
    network = random_network(THIN[kind], 5)
    write_darknet(network, tmp_path / "a.weights")
    state, num_classes = read_darknet(THIN[kind](2), tmp_path / "a.weights")
    assert num_classes == 5
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], value), name


def test_missing_file():
    with pytest.raises(UserError, match=r"no file of weights at nowhere\.weights: correct the path"):
        read_darknet(DarknetConv(1, 1, 1), "nowhere.weights")


@pytest.mark.parametrize("content", [b"", b"\0" * 15, struct.pack("<4i", 0, 2, 0, 0)])
def test_no_header(tmp_path, content):
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.weights is no darknet file, it has only {len(content)} bytes"):
        read_darknet(DarknetConv(1, 1, 1), path)


@pytest.mark.parametrize(("numbers", "word"), [(4, "short"), (6, "long")])
def test_wrong_length(tmp_path, numbers, word):
    path = file_of(tmp_path / "a.weights", *range(numbers))
    with pytest.raises(UserError, match=f"too {word} for DarknetConv, it holds {numbers} numbers and should hold 5"):
        read_darknet(DarknetConv(1, 1, 1), path)


def test_end_within_a_number(tmp_path):
    path = file_of(tmp_path / "a.weights", *range(5))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="ends within a number"):
        read_darknet(DarknetConv(1, 1, 1), path)


@pytest.mark.parametrize(("change", "word"), [(-1, "short"), (1, "long"), (-20_000, "short")])
def test_wrong_length_of_a_detector(tmp_path, change, word):
    path = tmp_path / "a.weights"
    write_darknet(THIN["v3"](), path)
    data = path.read_bytes()
    path.write_bytes(data[: 4 * change] if change < 0 else data + bytes(4 * change))
    with pytest.raises(UserError, match=f"too {word} for YOLOv3 with 3 classes, .* and 201 for each"):
        read_darknet(THIN["v3"](), path)


@pytest.mark.parametrize(("detector", "backbone"), [(YOLOv3, Darknet53), (YOLOv2, Darknet19)])
def test_detector_starts_from_a_files_backbone(tmp_path, detector, backbone):
    path = tmp_path / "a.weights"
    write_darknet(random_network(lambda: backbone(width=1 / 32)), path)
    network = detector(num_classes=2, width=1 / 32, backbone_weights=str(path))
    expected, _ = read_darknet(network.backbone, path)
    assert expected and all(torch.equal(network.backbone.state_dict()[name], v) for name, v in expected.items())
    with pytest.raises(UserError, match=r"a\.weights is too short"):
        detector(num_classes=2, width=1 / 16, backbone_weights=str(path))


@pytest.mark.parametrize("version", ["v3", "v2", "v1"])
def test_start_from_the_authors_file_for_other_classes(tmp_path, version):
    """A file of COCO's 80 classes does not name them; of two classes here one is COCO's number 16, the dog."""
    trained = random_network(THIN[version], 80)
    write_darknet(trained, tmp_path / "authors.weights")
    fresh = random_network(THIN[version], 2)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    load_weights(fresh, tmp_path / "authors.weights", class_names=["dog", "circle"])
    theirs, per_class = trained.state_dict(), set(fresh.class_parameters())
    for name, value in fresh.state_dict().items():
        if name in per_class:
            rows, old = value.view(-1, 2, *value.shape[1:]), theirs[name].view(-1, 80, *value.shape[1:])
            assert torch.equal(rows[:, 0], old[:, 16])
            assert torch.equal(rows[:, 1], before[name].view(rows.shape)[:, 1])
        elif value.is_floating_point():
            assert torch.equal(value, theirs[name]), name


def test_a_torch_file_is_recognised(tmp_path):
    trained, other = random_network(THIN["v3"]), THIN["v3"]()
    for file, options in (("new.weights", {}), ("old.weights", {"_use_new_zipfile_serialization": False})):
        torch.save(trained.state_dict(), tmp_path / file, **options)
        load_weights(other, tmp_path / file)
        assert torch.equal(other.levels[0].predict.boxes.weight, trained.levels[0].predict.boxes.weight)


def test_file_of_another_network_is_refused(tmp_path):
    write_darknet(THIN["v2"](), tmp_path / "a.weights")
    with pytest.raises(UserError, match=r"a\.weights is too .* for YOLOv3 with 3 classes"):
        load_weights(THIN["v3"](), tmp_path / "a.weights")
