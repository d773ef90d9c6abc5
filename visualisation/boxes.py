"""Boxes on pictures, and pictures on a sheet."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHORTEST = 320  # pictures with a shorter side are enlarged before drawing, so that labels can be read,
LONGEST = 4096  # unless the longer side would exceed this


def class_colour(label: int) -> tuple[int, int, int]:
    """An RGB colour per class: hues a golden ratio apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.08 + label * 0.618034) % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Draw boxes with their names.

    Args:
        image: (H, W, 3) uint8 RGB; enlarged by a whole factor if its shorter side is below `SHORTEST` pixels.
        boxes: (n, 4) XYXY in its pixels; drawn from the last to the first, so that the best detection is on top.
        labels: (n,) positions in `class_names`.
        class_names: of all classes.
        scores: (n,), written behind the names.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    factor = max(min(-(-SHORTEST // min(height, width)), LONGEST // max(height, width)), 1)
    picture = Image.fromarray(image)
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    size = max(round(min(picture.size) / 32), 11)
    line = max(round(min(picture.size) / 250), 2)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(picture)
    order = range(len(boxes) - 1, -1, -1)
    for i in order:
        x1, y1, x2, y2 = (float(v) * factor for v in boxes[i])
        box = (x1, y1, max(x2, x1), max(y2, y1))
        draw.rectangle(box, outline=class_colour(int(labels[i])), width=line)
    for i in order:  # after all boxes, whose lines would cross the words
        x1, y1 = (float(v) * factor for v in boxes[i][:2])
        colour = class_colour(int(labels[i]))
        text = class_names[int(labels[i])] + (f" {scores[i]:.2f}" if scores is not None else "")
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        text_width, text_height = right - left + 4, bottom - top + 4
        x = min(max(x1, 0), max(picture.width - text_width, 0))
        y = y1 - text_height if y1 >= text_height else y1
        draw.rectangle((x, y, x + text_width, y + text_height), fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        draw.text((x + 2 - left, y + 2 - top), text, fill="black" if bright > 140 else "white", font=font)
    return np.asarray(picture)


def caption(image: np.ndarray, text: str) -> np.ndarray:
    """The picture (H, W, 3) uint8 with a line of text above it."""
    size = max(round(image.shape[1] / 24), 11)
    bar = Image.new("RGB", (image.shape[1], round(1.6 * size)), "white")
    ImageDraw.Draw(bar).text((size // 3, size // 5), text, fill="black", font=ImageFont.load_default(size))
    return np.concatenate([np.asarray(bar), image])


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4, cell: int = 320) -> np.ndarray:
    """Pictures in rows, each fitted into a square.

    Args:
        images: (H, W, 3) uint8 of any sizes; at least one.
        columns: pictures per row, at most.
        cell: side of the squares in pixels.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + 4) - 4, rows * (cell + 4) - 4), "white")
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        factor = cell / max(picture.size)
        size = (max(round(picture.width * factor), 1), max(round(picture.height * factor), 1))
        place = ((i % columns) * (cell + 4), (i // columns) * (cell + 4))
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), place)
    return np.asarray(sheet)
