"""Start a segmenter from weights that somebody trained: torchvision's models and Triptych's own."""

import logging
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from errors import UserError
from models.checkpoint_file import read_checkpoint
from models.segmentation.segmenter import Segmenter

log = logging.getLogger(__name__)

# The 21 classes of torchvision's segmentation weights, which were trained on those pictures of COCO that show them.
VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

# torchvision's names and ours, applied in order.
TORCHVISION_NAMES = [
    (r"^backbone\.", "backbone.body."),
    (r"^classifier\.0\.convs\.([0-3])\.", r"decoder.aspp.convs.\1."),  # DeepLabV3
    (r"^classifier\.0\.convs\.4\.1\.", "decoder.aspp.pooled.0."),
    (r"^classifier\.0\.convs\.4\.2\.", "decoder.aspp.pooled.1."),
    (r"^classifier\.0\.project\.", "decoder.aspp.project."),
    (r"^classifier\.cbr\.", "decoder.conv."),  # LR-ASPP
    (r"^classifier\.scale\.1\.", "decoder.gate."),
    (r"^classifier\.(low|high)_classifier\.", r"decoder.score_\1."),
    (r"^aux_classifier\.", "auxiliary."),
]
DEEPLAB_TAIL = [(r"^classifier\.1\.", "decoder.conv.0."), (r"^classifier\.2\.", "decoder.conv.1.")]
DEEPLAB_TAIL += [(r"^classifier\.4\.", "decoder.score.")]
FCN_TAIL = [(r"^classifier\.", "decoder.")]


def load_weights(
    network: Segmenter,
    source: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    sha256: str | None = None,
) -> None:
    """Load trained weights into a segmenter, in place.

    Parts that the file does not have begin afresh, if they are heads: the skips that FCN-16s adds to FCN-32s, an
    auxiliary decoder. Where the classes differ, the rows of those that both know by name are carried over. A warning
    says what began afresh.

    Args:
        network: what is filled.
        source: file or http(s) URL of a state dict of torchvision (`fcn_*`, `deeplabv3_*`, `lraspp_*`), or of a
            checkpoint of Triptych.
        class_names: of the network's classes in order.
        sha256: what a downloaded file must hash to, or the first characters of it.

    Raises:
        UserError: the source cannot be had or read, or does not fit the network.
    """
    state, names = read_checkpoint(source, sha256)
    if any(key.startswith("classifier.") for key in state):
        state, names = from_torchvision(state), VOC_CLASSES
    own = network.state_dict()
    by_class = set(network.class_parameters())
    heads = ("scores.", "upsampling.", "auxiliary.")
    unknown = [key for key in state if key not in own and not key.startswith(heads)]
    problems = [f"{key} is unknown here" for key in unknown]
    problems += [f"{key} is missing" for key in own if key not in state and not key.startswith(heads)]
    problems += [
        f"{key} is {tuple(state[key].shape)} there and {tuple(value.shape)} here"
        for key, value in own.items()
        if key in state
        and key not in by_class
        and not key.startswith("upsampling.")
        and state[key].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"the weights {source} do not fit this {type(network).__name__} ({problems[0]}, and {len(problems) - 1} "
            "more): choose the network that they were trained with"
        )
    same = list(names) == list(class_names) if names and class_names else None
    rows = {i: names.index(name) for i, name in enumerate(class_names or []) if name in names}
    fresh = [key for key in own if key not in state]
    merged = dict(own)
    for key, value in own.items():
        if key not in state:
            continue
        if key in by_class and (same is False or state[key].shape != value.shape):
            merged[key] = _rows_carried_over(state[key], value, rows, source)
            fresh.append(key)
        elif state[key].shape == value.shape:
            merged[key] = state[key]
        else:
            fresh.append(key)
    if fresh:
        kept = f"; of the classes these were carried over: {', '.join(names[r] for r in rows.values()) or 'none'}"
        log.warning("%s: begin afresh: %s%s", source, ", ".join(fresh), "" if same in (True, None) else kept)
    network.load_state_dict(merged)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's `fcn_*`, `deeplabv3_*` or `lraspp_*` under the names of `EncoderDecoder`."""
    deeplab = any(key.startswith("classifier.0.convs.") for key in state)
    names = [*TORCHVISION_NAMES, *(DEEPLAB_TAIL if deeplab else FCN_TAIL)]
    converted = {}
    for key, value in state.items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        converted[key] = value
    return converted


def _rows_carried_over(old: Tensor, fresh: Tensor, rows: dict[int, int], source: str | os.PathLike) -> Tensor:
    if old.shape[1:] != fresh.shape[1:]:
        raise UserError(
            f"the scores of {source} are {tuple(old.shape)} and do not fit {tuple(fresh.shape)}: choose the network "
            "that they were trained with"
        )
    result = fresh.clone()
    if rows:
        result[torch.tensor(list(rows))] = old[torch.tensor(list(rows.values()))]
    return result
