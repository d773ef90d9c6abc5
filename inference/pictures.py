"""Pictures in whatever form they come."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from datamodules.images import read_image
from errors import UserError

Picture = str | Path | np.ndarray | Image.Image | torch.Tensor


def as_image(picture: Picture) -> np.ndarray:
    """Any kind of picture as (H, W, 3) uint8 RGB."""
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return _from_pil(picture)
    if isinstance(picture, torch.Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
            raise UserError(f"a picture as tensor must be (3, H, W) uint8, not {tuple(picture.shape)} {picture.dtype}")
        return picture.permute(1, 2, 0).cpu().numpy()
    if not isinstance(picture, np.ndarray):
        raise UserError(f"a picture is a path, an array, a PIL image or a tensor, not a {type(picture).__name__}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UserError(f"a picture as array must be (H, W, 3) uint8 RGB, not {picture.shape} {picture.dtype}")
    return picture


def _from_pil(picture: Image.Image) -> np.ndarray:
    """As `read_image` would read it: upright, transparency on black."""
    if picture.mode.startswith("I") or picture.mode == "F":
        raise UserError(
            f"a PIL image of mode {picture.mode} has more than 8 bits per pixel; convert it, or give its path"
        )
    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))
