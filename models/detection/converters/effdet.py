"""Names of effdet's EfficientDet for ours."""

import re

from torch import Tensor

from errors import UserError

# effdet's names and ours, applied in order.
EFFDET_NAMES = [
    (r"^backbone\.", "backbone.body."),
    (r"(backbone\..*bn\d)\.", r"\1.bn."),
    (r"^fpn\.resample\.3\.conv\.", "neck.extra."),
    (r"^fpn\.cell\.(\d+)\.fnode\.(\d+)\.", r"neck.cells.\1.nodes.\2."),
    (r"(nodes\.\d+)\.combine\.edge_weights$", r"\1.fusion.weights"),
    (r"(nodes\.\d+)\.combine\.resample\.(\d+)\.conv\.", r"\1.projections.\2."),
    (r"(nodes\.\d+)\.after_combine\.conv\.bn\.", r"\1.bn."),
    (r"(nodes\.\d+)\.after_combine\.conv\.", r"\1.conv."),
    (r"^(class|box)_net\.conv_rep\.", r"head.\1_net.convs."),
    (r"^(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.", r"head.\1_net.norms.\2.\3."),
    (r"^(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.(?=\w+$)", r"head.\1_net.norms.\3.\2."),  # sorted by level first
    (r"^(class|box)_net\.predict\.", r"head.\1_net.predict."),
    (r"^((?:neck|head)\..*)conv_dw\.", r"\1depthwise."),
    (r"^((?:neck|head)\..*)conv_pw\.", r"\1pointwise."),
]


def from_effdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of one of effdet's `tf_efficientdet_*` networks, or of its training bench, in our names.

    Raises:
        UserError: it is of one of effdet's own networks.
    """
    if "class_net.conv_rep.0.conv_pw.bias" not in state:
        raise UserError(
            "weights of effdet's efficientdet_* networks, which pad symmetrically and have no biases before batch "
            "normalisation, do not do: use those of its tf_efficientdet_*"
        )
    converted = {}
    for key, value in state.items():
        if not key.startswith("anchors."):  # of effdet's training bench
            for pattern, replacement in EFFDET_NAMES:
                key = re.sub(pattern, replacement, key)
            converted[key] = value
    return converted
