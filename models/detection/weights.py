"""Start a detector from weights that somebody trained: effdet's checkpoints and Triptych's own."""

import logging
import os
import re
from collections.abc import Sequence

from torch import Tensor

from errors import UserError
from models.checkpoint_file import read_checkpoint
from models.detection.coco_classes import COCO_CLASSES
from models.detection.detector import Detector

log = logging.getLogger(__name__)

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


def load_weights(
    network: Detector,
    source: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int | str] | None = None,
    sha256: str | None = None,
) -> None:
    """Load trained weights into a detector, in place.

    If the checkpoint has another number of classes, the class predictor's rows are carried over for the classes that
    both know and the other rows keep their fresh values; a warning says which. Classes are recognised by name, or,
    without names, by COCO category id in effdet's networks of 90 classes.

    Args:
        network: what is filled.
        source: file or http(s) URL of an effdet state dict (`tf_efficientdet_*`) or of a checkpoint of Triptych. A
            download is kept in torch.hub's cache.
        class_names: of the network's classes in order.
        category_ids: of the network's classes in order, as in the dataset's file.
        sha256: what the downloaded file must hash to, or the first characters of it.

    Raises:
        UserError: the source cannot be had or read, or does not fit the network.
    """
    state, names = _read(str(source), sha256)
    own = network.state_dict()
    fits_class = set(network.class_parameters())
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unknown here" for key in state if key not in own]
    problems += [
        f"{key} is {_shape(state[key])} there and {_shape(value)} here"
        for key, value in own.items()
        if key in state and key not in fits_class and state[key].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"the weights {source} do not fit this {type(network).__name__} ({problems[0]}, and {len(problems) - 1} "
            f"more): choose the network and variant that they were trained with"
        )
    if any(state[key].shape != own[key].shape for key in fits_class):
        rows = _known_classes(names, class_names, category_ids)
        for key in fits_class:
            state[key] = _carry_over(state[key], own[key], len(names), network.num_classes, rows, source)
        kept = ", ".join(names[row] for row in rows.values()) or "none"
        log.warning(
            "%s knows %d classes and the network %d: rows of %s replaced by fresh ones, except of the classes: %s",
            source,
            len(names),
            network.num_classes,
            " and ".join(sorted(fits_class)),
            kept,
        )
    network.load_state_dict(state)


def _read(source: str, sha256: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """State dict in our names, and the names of its classes ("" where unknown)."""
    state, names = read_checkpoint(source, sha256)
    if "class_net.predict.conv_pw.weight" in state:
        return _from_effdet(state, source)
    return state, names


def _from_effdet(state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    if "class_net.conv_rep.0.conv_pw.bias" not in state:
        raise UserError(
            f"{source} is one of effdet's efficientdet_* networks, which pad symmetrically and have no biases before "
            f"batch normalisation: use its tf_efficientdet_* weights"
        )
    converted = {}
    for key, value in state.items():
        if not key.startswith("anchors."):  # of effdet's training bench
            for pattern, replacement in EFFDET_NAMES:
                key = re.sub(pattern, replacement, key)
            converted[key] = value
    rows = len(state["class_net.predict.conv_pw.bias"]) // (len(state["box_net.predict.conv_pw.bias"]) // 4)
    return converted, list(COCO_CLASSES) if rows == len(COCO_CLASSES) else [""] * rows


def _known_classes(
    names: Sequence[str], class_names: Sequence[str] | None, category_ids: Sequence[int | str] | None
) -> dict[int, int]:
    """Row of the network -> row of the checkpoint."""
    if class_names is not None:
        rows = {name: row for row, name in enumerate(names) if name}
        return {row: rows[name] for row, name in enumerate(class_names) if name in rows}
    if category_ids is not None and list(names) == COCO_CLASSES:
        known = {row + 1 for row, name in enumerate(names) if name}
        return {row: id_ - 1 for row, id_ in enumerate(category_ids) if id_ in known}
    return {}


def _carry_over(
    old: Tensor, fresh: Tensor, old_classes: int, classes: int, rows: dict[int, int], source: str | os.PathLike
) -> Tensor:
    """Rows of the same classes from the old predictor (anchors * classes, ...) in a copy of the fresh one."""
    if old_classes == 0 or len(old) * classes != len(fresh) * old_classes or old.shape[1:] != fresh.shape[1:]:
        raise UserError(
            f"the class predictor of {source} is {_shape(old)} and does not fit one of {_shape(fresh)}: "
            f"choose the network that it was trained with"
        )
    result = fresh.clone()
    by_class = result.view(-1, classes, *fresh.shape[1:])  # (anchors, classes, ...)
    by_class[:, list(rows)] = old.view(-1, old_classes, *old.shape[1:])[:, list(rows.values())]
    return result


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
