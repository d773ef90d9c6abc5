"""Detectors that are given their proposals instead of making them."""

from typing import Any

from torch import Tensor

from errors import UserError


def given_proposals(outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The proposals that came with a batch, as whoever called the network put them into its outputs.

    Returns:
        Boxes (B, P, 4) XYXY and (B, P) bool, False where padded.

    Raises:
        UserError: there are none.
    """
    if "proposals" not in outputs:
        raise UserError(
            "this detector classifies proposals, and the data gives none: set data.proposals to "
            "datamodules.selective_search.SelectiveSearch, as configs/fast_rcnn_vgg16.yaml does"
        )
    return outputs["proposals"]
