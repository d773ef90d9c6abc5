"""A detector composed in YAML: parts by class_path, neck and head without the arguments that follow from the rest."""

import torch
import yaml
from jsonargparse import ArgumentParser

from models.detection import Detector
from models.loss_term import LossTerm

YAML = """
class_path: models.detection.OneStageDetector
init_args:
  num_classes: 3
  image_size: 64
  backbone:
    class_path: models.backbones.timm_backbone.TimmBackbone
    init_args: {name: resnet18, out_indices: [2, 3]}
  neck:
    class_path: models.necks.bifpn.BiFPN
    init_args: {channels: 16, num_levels: 3, repeats: 1}
  head:
    class_path: models.detection.dense_heads.efficientdet_head.EfficientDetHead
    init_args: {repeats: 1}
  anchors:
    class_path: models.detection.anchors.AnchorGenerator
    init_args: {strides: [8, 16, 32], octaves: 2, ratios: [1.0]}
  matcher:
    class_path: models.detection.matcher.Matcher
    init_args: {negative_iou: 0.4}
  box_coder: {class_path: models.detection.box_coder.BoxCoder}
  class_loss:
    class_path: models.detection.losses.focal_loss.FocalLoss
    init_args: {gamma: 2.0}
  box_loss: {class_path: models.detection.losses.huber_loss.HuberLoss}
  postprocessor:
    class_path: models.detection.postprocessing.postprocess.Postprocessor
    init_args:
      max_detections: 7
      nms: {class_path: models.detection.postprocessing.nms.SoftNMS}
"""


def test_detector_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Detector)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    network = instantiate(parser.parse_object({"network": yaml.safe_load(YAML)})).network
    assert (network.num_classes, network.size_divisor) == (3, 32)
    outputs = network.train()(torch.randn(2, 3, 64, 96))
    assert outputs["sizes"] == [(8, 12), (4, 6), (2, 3)]
    assert [x.shape for x in outputs["class_logits"]] == [(2, 2 * n, 3) for n in (96, 24, 6)]
    targets = {
        "boxes": torch.tensor([[[10.0, 10, 40, 40]], [[0, 0, 0, 0]]]),
        "labels": torch.tensor([[2], [-1]]),
        "iscrowd": torch.zeros(2, 1, dtype=torch.bool),
    }
    size = torch.tensor([[64, 96], [64, 96]])
    terms = network.loss_terms(outputs, targets, size)
    assert all(isinstance(term, LossTerm) for term in terms.values())
    assert terms["box_loss"].denominator[0] >= 1
    sum(term.value() for term in terms.values()).backward()
    assert all(parameter.grad is not None for name, parameter in network.named_parameters() if "layer4" not in name)
    assert network.eval().detect(outputs, size)["boxes"].shape == (2, 7, 4)
    assert network.class_parameters() == [
        "head.class_net.predict.pointwise.weight",
        "head.class_net.predict.pointwise.bias",
    ]
    assert set(network.class_parameters()) < set(network.state_dict())
