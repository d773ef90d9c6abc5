"""The precision of geometry and losses."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; float64 stays, so that a comparison in float64 is one throughout."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
