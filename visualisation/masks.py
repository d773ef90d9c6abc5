"""Label masks on pictures, and as palette PNG files."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visualisation.boxes import LONGEST, SHORTEST

IGNORED = 255


def draw_masks(
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    palette: np.ndarray,
    opacity: float = 0.6,
) -> np.ndarray:
    """Colour the pixels of a picture by their class and write the names of the classes below it.

    Args:
        image: (H, W, 3) uint8 RGB; enlarged by a whole factor if its shorter side is below `SHORTEST` pixels.
        labels: (H, W) uint8; 255 is drawn in white.
        class_names: of all classes.
        palette: (256, 3) uint8, a colour per class.
        opacity: of the colours.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    height, width = labels.shape
    factor = max(min(-(-SHORTEST // min(height, width)), LONGEST // max(height, width)), 1)
    image, labels = (array.repeat(factor, 0).repeat(factor, 1) for array in (image, labels))
    colours = palette.copy()
    colours[IGNORED] = 255
    # Class 0, the background in most datasets, stays as it is if the palette paints it black.
    strength = np.full(256, opacity, np.float32)
    strength[(colours == 0).all(1)] = 0.0
    strength = strength[labels][..., None]
    mixed = image * (1 - strength) + colours[labels] * strength
    drawn = np.round(mixed).astype(np.uint8)
    shown = [label for label in np.unique(labels).tolist() if label < len(class_names)]
    return np.concatenate([drawn, _legend(drawn.shape[1], [(class_names[k], palette[k]) for k in shown])])


def palette_image(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Labels (H, W) uint8 as a picture of mode P, as VOC's annotations are: what is stored are the labels."""
    image = Image.fromarray(labels)
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def _legend(width: int, entries: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Coloured squares with names, in as many lines as they need: (h, width, 3) uint8."""
    size = max(round(width / 32), 11)
    font = ImageFont.load_default(size)
    places, x, y = [], size // 2, size // 3
    for name, colour in entries:
        needed = round(font.getlength(name)) + 2 * size
        if x + needed > width and x > size // 2:
            x, y = size // 2, y + round(1.4 * size)
        places.append((x, y, name, tuple(int(c) for c in colour)))
        x += needed + size // 2
    bar = Image.new("RGB", (width, y + round(1.6 * size)), "white")
    draw = ImageDraw.Draw(bar)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + size, y + size + 2), fill=colour, outline="black")
        draw.text((x + round(1.4 * size), y), name, fill="black", font=font)
    return np.asarray(bar)
