"""Weights from stage to stage, and from other classes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from models.backbones.dilated import DilatedMobileNetV3
from models.backbones.timm_backbone import TimmBackbone
from models.segmentation import FCN, EncoderDecoder
from models.segmentation.decoders import DeepLabHead, FCNHead, LRASPPHead, SkipHead
from models.segmentation.fcn_backbones import VGG16
from models.segmentation.weights import load_weights


def fcn(stride: int, classes: int = 3) -> FCN:
    network = FCN(num_classes=classes, backbone=VGG16(width=1 / 32), stride=stride)
    for score in network.scores.values():
        nn.init.normal_(score.weight)
        nn.init.normal_(score.bias)
    return network


def saved(network: nn.Module, path, class_names=()):
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "triptych": {"data": {"class_names": list(class_names)}}}, path)
    return path


def test_the_finer_stage_starts_from_the_coarser_one(tmp_path, caplog):
    coarse, finer = fcn(32), fcn(16)
    fresh = {key: value.clone() for key, value in finer.state_dict().items()}
    load_weights(finer, saved(coarse, tmp_path / "32s.ckpt", "abc"), class_names=list("abc"))
    for key, value in finer.state_dict().items():
        same_shape = key in coarse.state_dict() and coarse.state_dict()[key].shape == value.shape
        assert torch.equal(value, coarse.state_dict()[key] if same_shape else fresh[key]), key
    assert "begin afresh: scores.stride16.weight, scores.stride16.bias, upsampling.to16.weight" in caplog.text


def test_rows_of_classes_are_carried_over_by_name(tmp_path, caplog):
    old, new = fcn(32, 3), fcn(32, 4)
    fresh = new.scores["stride32"].weight.clone()
    load_weights(new, saved(old, tmp_path / "old.ckpt", ["sky", "road", "car"]), class_names=["a", "car", "b", "sky"])
    weight, before = new.scores["stride32"].weight, old.scores["stride32"].weight
    assert torch.equal(weight[[1, 3]], before[[2, 0]])
    assert torch.equal(weight[[0, 2]], fresh[[0, 2]])
    assert "these were carried over: car, sky" in caplog.text


def test_other_networks_are_refused(tmp_path):
    path = saved(fcn(32), tmp_path / "vgg.ckpt")
    with pytest.raises(UserError, match=r"vgg.ckpt do not fit this EncoderDecoder .* is unknown here, and \d+ more"):
        load_weights(EncoderDecoder(num_classes=3, backbone=DilatedMobileNetV3(), decoder=LRASPPHead), path)
    with pytest.raises(UserError, match=r"do not fit this FCN .*is \(.*\) there and"):
        load_weights(FCN(num_classes=3, backbone=VGG16(width=1 / 16), stride=32), path)


@pytest.mark.parametrize("decoder", [FCNHead, DeepLabHead, LRASPPHead, SkipHead])
def test_any_timm_backbone(decoder):
    backbone = TimmBackbone("resnet18", out_indices=(2, 4), output_stride=8)
    assert backbone.strides == [8, 8]
    network = EncoderDecoder(num_classes=5, backbone=backbone, decoder=decoder).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 65, 49))["out"].shape == (1, 5, 65, 49)
    parameters = dict(network.named_parameters())
    assert {parameters[name].shape[0] for name in network.class_parameters()} == {5}
    assert len(network.class_parameters()) in (2, 4)


def test_skips_are_added_from_coarse_to_fine():
    head = SkipHead([3, 5, 7], 2, channels=4).eval()
    for conv in (*head.project, head.conv):
        conv[1].reset_running_stats()
    features = [torch.randn(1, 3, 12, 8), torch.randn(1, 5, 6, 4), torch.randn(1, 7, 3, 2)]
    with torch.no_grad():
        fine, middle, coarse = (project(x) for project, x in zip(head.project, features, strict=True))
        total = fine + F.interpolate(middle + F.interpolate(coarse, (6, 4), mode="bilinear"), (12, 8), mode="bilinear")
        assert torch.allclose(head(features), head.score(head.conv(total)), atol=1e-6)
        assert not torch.allclose(head([features[0], 0 * features[1], features[2]]), head(features), atol=1e-3)
