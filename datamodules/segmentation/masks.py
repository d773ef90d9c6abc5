"""From mask files to labels: what the numbers and colours of a PNG mean."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.images import CorruptImageError
from errors import UserError

IGNORED = 255  # of a label: counts in no loss and no metric


def voc_palette() -> np.ndarray:
    """VOC's colours, (256, 3) uint8: the bits of the label dealt out to red, green, blue, highest first."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def open_mask(path: str | Path) -> Image.Image:
    """A mask as Pillow reads it, its mode untouched.

    Raises:
        CorruptImageError: the file is truncated or no picture.
        UserError: the file does not exist.
    """
    try:
        image = Image.open(io.BytesIO(Path(path).read_bytes()))
        image.load()
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        raise CorruptImageError(f"{path}: the mask cannot be decoded ({error}); replace the file") from error
    except OSError as error:
        if error.errno is None:  # Pillow's own, of a truncated file
            raise CorruptImageError(f"{path}: the mask cannot be decoded ({error}); replace the file") from error
        raise UserError(f"{path}: the mask cannot be read ({error.strerror}); check the path") from error
    return image


def read_indices(path: str | Path) -> np.ndarray:
    """The numbers that a mask file stores, (H, W): palette indices or gray values, never colours.

    Raises:
        CorruptImageError: see `open_mask`.
        UserError: the mask is stored in colours.
    """
    image = open_mask(path)
    if len(image.getbands()) > 1:
        raise UserError(
            f"{path}: the mask is stored in colours (mode {image.mode}), but numbers of classes are expected; save it "
            "in mode L or P, or read it as colours with datamodules.FolderSegmentation and data.mask_format colour"
        )
    return np.array(image)


class IndexMasks:
    """Reads masks whose pixels hold the numbers of classes.

    Args:
        class_ids: the number in the file of every class, in the order of the labels.
        ignore: numbers that become 255; 255 itself always does.
    """

    def __init__(self, class_ids: Sequence[int], ignore: Sequence[int] = ()) -> None:
        self.classes = len(class_ids)
        largest = max([*class_ids, *ignore, IGNORED])
        self.labels = np.full(largest + 1, -1, np.int16)
        self.labels[[*ignore, IGNORED]] = IGNORED
        self.labels[list(class_ids)] = np.arange(len(class_ids))
        plain = list(class_ids) == list(range(len(class_ids))) and not set(ignore) - {IGNORED}
        self.limit = self.classes if plain else None

    def numbers(self, path: str | Path) -> np.ndarray:
        """What the file stores, (H, W) of any integer type."""
        return read_indices(path)

    def __call__(self, path: str | Path) -> np.ndarray:
        """Labels (H, W) uint8.

        Raises:
            CorruptImageError: see `open_mask`.
            UserError: a mask in colours, or with a number that is neither a class nor ignored.
        """
        numbers = self.numbers(path)
        if self.limit is not None and numbers.dtype == np.uint8:
            wrong = (numbers >= self.limit) & (numbers != IGNORED)
            if not wrong.any():
                return numbers
        else:
            known = (numbers >= 0) & (numbers < len(self.labels))
            labels = self.labels[np.where(known, numbers, 0)]
            wrong = ~known | (labels < 0)
            if not wrong.any():
                return labels.astype(np.uint8)
        raise UserError(
            f"{path}: the mask holds the value {int(numbers[wrong][0])}, which belongs to none of the {self.classes} "
            "classes; correct the mask or the list of classes, or list the value with --data.ignore"
        )


class ColourMasks:
    """Reads masks whose pixels hold the colours of classes.

    Args:
        colours: label (255 for pixels that do not count) of each colour (red, green, blue).
    """

    def __init__(self, colours: Mapping[tuple[int, int, int], int]) -> None:
        codes = np.array([red << 16 | green << 8 | blue for red, green, blue in colours])
        order = np.argsort(codes)
        self.codes = codes[order]
        self.labels = np.array(list(colours.values()), np.uint8)[order]

    def __call__(self, path: str | Path) -> np.ndarray:
        """Labels (H, W) uint8.

        Raises:
            CorruptImageError: see `open_mask`.
            UserError: a colour that is not in the table.
        """
        colours = np.asarray(open_mask(path).convert("RGB")).astype(np.int32)
        codes = colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
        places = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        wrong = self.codes[places] != codes
        if wrong.any():
            red, green, blue = colours[wrong][0].tolist()
            raise UserError(
                f"{path}: the mask holds the colour {red} {green} {blue} in {int(wrong.sum())} pixels, which is not in "
                "the table of colours; add it to --data.colours, and to --data.ignore if it is no class"
            )
        return self.labels[places]
