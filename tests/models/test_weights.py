import http.server
import logging
import threading

import pytest
import torch

from errors import UserError
from models.detection import EfficientDet
from models.detection.coco_classes import COCO_CLASSES
from models.detection.weights import load_weights

effdet = pytest.importorskip("effdet")


def effdet_state(name="tf_efficientdet_d0", num_classes=90):
    config = effdet.get_efficientdet_config(name)
    config.image_size = (128, 128)
    config.num_classes = num_classes
    return effdet.EfficientDet(config, pretrained_backbone=False).state_dict()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tf_efficientdet_d0.pth"
    state = effdet_state()
    # A number of its own in every row of the class predictor.
    rows = torch.arange(810.0)
    state["class_net.predict.conv_pw.bias"] = rows
    state["class_net.predict.conv_pw.weight"] = rows.view(-1, 1, 1, 1).expand(-1, 64, -1, -1).clone()
    torch.save(state, path)
    return path


def network(num_classes=90, variant="d0"):
    return EfficientDet(num_classes=num_classes, variant=variant)


def class_bias(detector):
    return detector.state_dict()["head.class_net.predict.pointwise.bias"].view(9, -1)  # (anchors, classes)


def test_every_tensor_of_effdet_is_taken(checkpoint):
    detector = network()
    load_weights(detector, checkpoint)
    ours, theirs = detector.state_dict(), torch.load(checkpoint, weights_only=True)
    assert len(ours) == len(theirs) == 784
    assert sorted(v.sum().item() for v in ours.values()) == sorted(v.sum().item() for v in theirs.values())
    assert torch.equal(
        ours["neck.cells.0.nodes.5.projections.2.conv.weight"],
        theirs["fpn.cell.0.fnode.5.combine.resample.2.conv.conv.weight"],
    )


def test_benches_and_training_checkpoints_of_effdet(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    bench = {f"model.{key}": value for key, value in state.items()} | {"anchors.boxes": torch.zeros(3, 4)}
    torch.save({"state_dict": {}, "state_dict_ema": bench, "epoch": 3}, "bench.pth")
    detector = network()
    load_weights(detector, "bench.pth")
    assert class_bias(detector).flatten().tolist() == list(range(810))


def test_heads_sorted_by_level_first(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if "bn_rep" in parts:  # bn_rep.<repeat>.<level>.bn.weight -> bn_rep.<level>.<repeat>.weight
            parts = [*parts[:2], parts[3], parts[2], parts[5]]
        renamed[".".join(parts)] = value
    torch.save(renamed, "level_first.pth")
    first, second = network(), network()
    load_weights(first, checkpoint)
    load_weights(second, "level_first.pth")
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_classes_are_recognised_by_name(checkpoint, caplog):
    detector = network(3)
    fresh = class_bias(detector).clone()
    with caplog.at_level(logging.WARNING):
        load_weights(
            detector, checkpoint, class_names=["toothbrush", "blood cell", "stop sign"], category_ids=[1, 2, 3]
        )
    bias = class_bias(detector)
    assert bias[:, 0].tolist() == [90 * a + 89 for a in range(9)]
    assert torch.equal(bias[:, 1], fresh[:, 1])
    assert bias[:, 2].tolist() == [90 * a + 12 for a in range(9)]
    weight = detector.state_dict()["head.class_net.predict.pointwise.weight"].view(9, 3, 64)
    assert (weight[2, 2] == 192).all()
    assert "90 classes and the network 3" in caplog.text
    assert "head.class_net.predict.pointwise.weight" in caplog.text
    assert "toothbrush, stop sign" in caplog.text


def test_the_80_classes_of_coco_by_category_id(checkpoint):
    ids = [row + 1 for row, name in enumerate(COCO_CLASSES) if name]
    assert (len(ids), ids[11], ids[-1]) == (80, 13, 90)
    detector = network(80)
    load_weights(detector, checkpoint, category_ids=ids)
    assert class_bias(detector)[1].tolist() == [90 + id_ - 1 for id_ in ids]


@pytest.mark.parametrize("category_ids", [None, ["a", "b"], [12, 91]])
def test_unknown_classes_start_afresh(checkpoint, caplog, category_ids):
    detector = network(2)
    fresh = class_bias(detector).clone()
    with caplog.at_level(logging.WARNING):
        load_weights(detector, checkpoint, category_ids=category_ids)
    assert torch.equal(class_bias(detector), fresh)
    assert "except of the classes: none" in caplog.text
    box = torch.load(checkpoint, weights_only=True)["box_net.predict.conv_pw.weight"]
    assert torch.equal(detector.state_dict()["head.box_net.predict.pointwise.weight"], box)


def test_own_checkpoint(caplog):
    trained = network(3)
    state = {f"network.{key}": value for key, value in trained.state_dict().items()}
    data = {"class_names": ["circle", "square", "star"]}
    torch.save({"state_dict": state, "triptych": {"data": data}, "epoch": 1}, "best.ckpt")
    same, other = network(3), network(2)
    load_weights(same, "best.ckpt")
    for key, value in trained.state_dict().items():
        assert torch.equal(same.state_dict()[key], value)
    with caplog.at_level(logging.WARNING):
        load_weights(other, "best.ckpt", class_names=["star", "hexagon"])
    weight = "head.class_net.predict.pointwise.weight"
    ours, theirs = other.state_dict()[weight].view(9, 2, 64), trained.state_dict()[weight].view(9, 3, 64)
    assert torch.equal(ours[:, 0], theirs[:, 2])
    assert "except of the classes: star" in caplog.text


def test_the_same_classes_in_another_order():
    trained, other = network(3), network(3)
    state = {f"network.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "triptych": {"data": {"class_names": ["circle", "square", "star"]}}}, "best.ckpt")
    load_weights(other, "best.ckpt", class_names=["star", "circle", "square"])
    weight = "head.class_net.predict.pointwise.weight"
    ours, theirs = other.state_dict()[weight].view(9, 3, 64), trained.state_dict()[weight].view(9, 3, 64)
    assert torch.equal(ours, theirs[:, [2, 0, 1]])


@pytest.fixture
def server(checkpoint, tmp_path, monkeypatch):
    """Serves the checkpoint's folder from this machine; torch.hub's cache is a fresh folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        requests = 0

        def __init__(self, *args):
            super().__init__(*args, directory=str(checkpoint.parent))

        def do_GET(self):
            Quiet.requests += 1
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.handler = Quiet
        yield running
        running.shutdown()
        thread.join()


def test_weights_from_a_url_are_downloaded_once(server, tmp_path):
    for _ in range(2):
        detector = network()
        load_weights(detector, f"{server.url}/tf_efficientdet_d0.pth")
        assert class_bias(detector).flatten().tolist() == list(range(810))
    assert server.handler.requests == 1
    assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == ["tf_efficientdet_d0.pth"]


def test_failed_downloads_leave_nothing_behind(server, tmp_path):
    with pytest.raises(UserError, match=r"/tf_efficientdet_d0.pth could not be downloaded: invalid hash value"):
        load_weights(network(), f"{server.url}/tf_efficientdet_d0.pth", sha256="0123abcd")
    with pytest.raises(UserError, match=r"/missing.pth could not be downloaded: HTTP Error 404"):
        load_weights(network(), f"{server.url}/missing.pth")
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_bad_sources():
    with pytest.raises(UserError, match=r"no file of weights at nowhere.pth: correct the path"):
        load_weights(network(), "nowhere.pth")
    with open("text.pth", "w") as file:
        file.write("no weights")
    with pytest.raises(UserError, match=r"text.pth is no readable file of weights"):
        load_weights(network(), "text.pth")
    torch.save([1, 2], "list.pth")
    with pytest.raises(UserError, match=r"list.pth holds no state dict"):
        load_weights(network(), "list.pth")


def test_damaged_file(checkpoint):
    with open("half.pth", "wb") as file:
        file.write(checkpoint.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"half.pth is no readable file of weights"):
        load_weights(network(), "half.pth")


def test_code_in_a_file_is_not_run():
    import argparse

    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "unsafe.pth")
    with pytest.raises(UserError, match=r"unsafe.pth is no readable file of weights .* plain values only"):
        load_weights(network(), "unsafe.pth")


def test_another_variant(checkpoint):
    with pytest.raises(UserError, match=r"do not fit this EfficientDet \(.* more\): choose the network and variant"):
        load_weights(network(variant="d1"), checkpoint)


def test_effdets_own_networks_are_refused():
    torch.save(effdet_state("efficientdet_d0"), "own.pth")
    with pytest.raises(UserError, match=r"own.pth: weights of effdet's efficientdet_\* networks, .* tf_efficientdet"):
        load_weights(network(), "own.pth")
