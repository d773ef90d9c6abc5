"""Read a picture file as RGB bytes, whatever its format."""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from errors import UserError


class CorruptImageError(UserError):
    """A picture that cannot be decoded in full."""


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a picture.

    8-bit JPEG in gray or colour is decoded by OpenCV, which is the fastest decoder at hand; everything else by Pillow:
    palettes and transparency (on black), CMYK, 16 bits per channel (the upper 8 are taken).

    Args:
        path: of the file.
        size: (height, width) that the annotations speak of. Boxes of a rotated photograph may refer to the stored
            pixels or to the upright picture: the one that has this size is returned. None: upright.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        CorruptImageError: the file is truncated or no picture.
        UserError: the file does not exist, or has another size than the annotations say.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and the image folder") from error
    image = _decode_jpeg(path, data) if data[:3] == b"\xff\xd8\xff" else None
    if image is None:
        image = _decode_any(path, data)
    if size is None or image.shape[:2] != tuple(size):
        turned = _upright(path, image, data)
        if size is not None and turned.shape[:2] != tuple(size):
            raise UserError(
                f"{path}: the picture has {image.shape[1]} x {image.shape[0]} pixels, its annotation says "
                f"{size[1]} x {size[0]}; correct the annotation's width and height or the file"
            )
        image = turned
    return image


def _decode_jpeg(path: Path, data: bytes) -> np.ndarray | None:
    """Decode with OpenCV; None for what it does not decode faithfully (CMYK)."""
    # OpenCV fills what is missing of a truncated file with gray and says nothing. Whole files end with the end-of-image
    # marker, some of them followed by padding or by an appended second stream.
    if not data.rstrip(b"\0\n\r ").endswith(b"\xff\xd9"):
        return _decode_any(path, data)  # Pillow is strict, and names the fault
    if _jpeg_components(data) == 4:
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise CorruptImageError(f"{path}: cannot be decoded as JPEG; replace or remove the file")
    return image


def _jpeg_components(data: bytes) -> int:
    """Colour components of a JPEG stream, from its frame header (0 if there is none)."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[position + 9]
        if marker == 0xFF:
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0


def _decode_any(path: Path, data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF blocks are none of our business
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                if image.mode.startswith("I") or image.mode == "F":
                    wide = np.asarray(image)
                    if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
                        raise UserError(
                            f"{path}: pixels of mode {image.mode} are no picture; convert it to 8 or 16 bits"
                        )
                    gray = (wide >> 8 if image.mode != "I" or wide.max() > 255 else wide).astype(np.uint8)
                    return np.repeat(gray[..., None], 3, axis=2)
                if "A" in image.mode or "transparency" in image.info:
                    image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
                return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise CorruptImageError(
            f"{path}: cannot be decoded ({error}); replace or remove the file, or set data.on_bad_sample to skip"
        ) from error


def _upright(path: Path, image: np.ndarray, data: bytes) -> np.ndarray:
    """Turn and mirror as the camera says in the EXIF block."""
    with Image.open(io.BytesIO(data)) as header:
        orientation = header.getexif().get(0x0112, 1)
    if orientation == 1:
        return image
    picture = Image.fromarray(image)
    picture.getexif()[0x0112] = orientation
    return np.array(ImageOps.exif_transpose(picture))
