"""Names and order of torchvision's RetinaNet for ours."""

import re

from torch import Tensor

# torchvision's names and ours, applied in order; the backbone's are the same. The oldest files have no `.0`.
NAMES = [
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?", r"neck.lateral.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?", r"neck.output.\1."),
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.coarser.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.coarser.1."),
    (r"^head\.classification_head\.", "head.class_net."),
    (r"^head\.regression_head\.", "head.box_net."),
    (r"_net\.(?:cls_logits|bbox_reg)\.", "_net.predict."),
    (r"_net\.conv\.(\d+)\.0\.", r"_net.convs.\1."),
    (r"_net\.conv\.(\d+)\.1\.", r"_net.norms.\1."),
]
RATIOS = SIDES = 3  # of the anchors of a cell


def from_torchvision_retinanet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of torchvision's `retinanet_resnet50_fpn` or `..._v2` in the names of `RetinaNet`.

    Its anchors of a cell are ordered by ratio and then side, ours by side and then ratio.

    Args:
        state: of any number of classes; the published networks have 91, the background first, which they never learn.

    Returns:
        The same values.
    """
    result = {}
    for key, value in state.items():
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        # Files before torchvision 0.13 count the activations, too.
        key = re.sub(r"_net\.conv\.(\d+)\.", lambda match: f"_net.convs.{int(match[1]) // 2}.", key)
        if "_net.predict." in key:
            value = value.unflatten(0, (RATIOS, SIDES, -1)).transpose(0, 1).flatten(0, 2)
        result[key] = value
    return result
