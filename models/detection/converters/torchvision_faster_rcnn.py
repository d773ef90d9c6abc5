"""Names of torchvision's Faster R-CNN for ours."""

import re

from torch import Tensor

# torchvision's names and ours, applied in order; the backbone's are the same.
NAMES = [
    (r"^backbone\.fpn\.inner_blocks\.", "neck.lateral."),
    (r"^backbone\.fpn\.layer_blocks\.", "neck.output."),
    (r"^rpn\.head\.conv\.(\d+)\.0\.", r"rpn.convs.\1."),
    (r"^rpn\.head\.conv\.(?=weight|bias)", "rpn.convs.0."),  # before torchvision 0.13
    (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.box_codes."),
    (r"^roi_heads\.box_head\.fc6\.", "roi_head.box_head.fc1."),
    (r"^roi_heads\.box_head\.fc7\.", "roi_head.box_head.fc2."),
    (r"^roi_heads\.box_head\.5\.", "roi_head.box_head.fc."),
    (r"^roi_heads\.box_head\.(\d)\.0\.", r"roi_head.box_head.convs.\1."),
    (r"^roi_heads\.box_head\.(\d)\.1\.", r"roi_head.box_head.norms.\1."),
]
CLASSES = "roi_heads.box_predictor.cls_score."
CODES = "roi_heads.box_predictor.bbox_pred."


def from_torchvision_faster_rcnn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of torchvision's `fasterrcnn_resnet50_fpn` or `..._v2` in the names of `FasterRCNN`.

    Its first class is the background, which is kept apart here; its box codes for the background, which nothing
    reads, are left out. Codes are ordered by class there, by coordinate here.

    Args:
        state: of N + 1 classes, the background among them; N is 90 in the published weights (COCO's category ids).

    Returns:
        The same values for a network of N classes.
    """
    normalised = "backbone.fpn.inner_blocks.0.1.weight" in state
    result = {}
    for key, value in state.items():
        kind = key.rpartition(".")[2]
        if key.startswith(CLASSES):
            result[f"roi_head.predictor.background.{kind}"] = value[:1]
            result[f"roi_head.predictor.classes.{kind}"] = value[1:]
        elif key.startswith(CODES):
            codes = value.unflatten(0, (-1, 4))[1:]  # (N, 4, ...)
            result[f"roi_head.predictor.box_codes.{kind}"] = codes.transpose(0, 1).flatten(0, 1)
        else:
            for pattern, replacement in NAMES:
                key = re.sub(pattern, replacement, key)
            if not normalised:  # no Sequential around the convolution
                key = re.sub(r"^(neck\.(?:lateral|output)\.\d+)\.0\.", r"\1.", key)
            result[key] = value
    return result
