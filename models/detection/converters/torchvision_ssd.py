"""Names of torchvision's SSD300 for ours."""

import re

from torch import Tensor

# torchvision's names and ours, applied in order; those of conv1_1 to conv4_3 are the same.
NAMES = [
    (r"^backbone\.scale_weight$", "backbone.scale"),
    (r"^backbone\.extra\.0\.7\.1\.", "backbone.deep.8."),
    (r"^backbone\.extra\.0\.7\.3\.", "backbone.deep.10."),
    (r"^backbone\.extra\.0\.", "backbone.deep."),
    (r"^backbone\.extra\.(\d+)\.", lambda match: f"backbone.extras.{int(match[1]) - 1}."),
    (r"^head\.regression_head\.module_list\.", "head.box_codes."),
]
SCORES = r"^head\.classification_head\.module_list\.(\d+)\.(weight|bias)$"


def from_torchvision_ssd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of torchvision's `ssd300_vgg16` in the names of `SSD`.

    Its first class is the background, which is kept apart here.

    Args:
        state: of N + 1 classes; N is 90 in the published weights (COCO's category ids).

    Returns:
        The same values for a network of N classes.
    """
    result = {}
    for key, value in state.items():
        scores = re.match(SCORES, key)
        if scores:
            level, kind = scores.groups()
            boxes = len(state[f"head.regression_head.module_list.{level}.bias"]) // 4
            by_box = value.unflatten(0, (boxes, -1))
            result[f"head.background.{level}.{kind}"] = by_box[:, 0]
            result[f"head.classes.{level}.{kind}"] = by_box[:, 1:].flatten(0, 1)
            continue
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result
