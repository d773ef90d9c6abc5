"""Outlines of objects: COCO's polygons and run lengths, all kept as compressed run lengths in one flat array."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from errors import UserError


@dataclass
class Outlines:
    """The masks of M objects as compressed run lengths, end to end: worker processes share two arrays.

    Attributes:
        runs: (bytes,) uint8.
        ends: (M + 1,) int64, the run lengths of object i are `runs[ends[i]:ends[i + 1]]`.
    """

    runs: np.ndarray
    ends: np.ndarray

    @classmethod
    def from_list(cls, runs: Sequence[bytes]) -> "Outlines":
        """Lay the run lengths of all objects out flat."""
        ends = np.concatenate([[0], np.cumsum([len(run) for run in runs])]).astype(np.int64)
        return cls(np.frombuffer(b"".join(runs), np.uint8), ends)

    def masks(self, positions: Sequence[int], size: tuple[int, int]) -> np.ndarray:
        """The masks (n, H, W) bool of some objects of a picture of `size` (height, width)."""
        encoded = [
            {"size": list(size), "counts": self.runs[self.ends[i] : self.ends[i + 1]].tobytes()} for i in positions
        ]
        if not encoded:
            return np.zeros((0, *size), bool)
        return np.ascontiguousarray(coco_mask.decode(encoded).transpose(2, 0, 1)).astype(bool)


def run_lengths(file: Path, annotation: dict[str, Any], size: tuple[int, int]) -> bytes:
    """The outline of an object as COCO's compressed run lengths.

    Args:
        file: for messages.
        annotation: with `segmentation`: polygons [[x1, y1, x2, y2, ...], ...], or run lengths {"size", "counts"}.
        size: (height, width) of its picture.

    Raises:
        UserError: naming the annotation.
    """
    where = f"{file}: annotation {annotation.get('id')!r}"
    outline = annotation.get("segmentation")
    try:
        if isinstance(outline, list) and outline and all(_is_polygon(part) for part in outline):
            return coco_mask.merge(coco_mask.frPyObjects(outline, *size))["counts"]
        if isinstance(outline, dict):
            if tuple(outline["size"]) != size:
                raise UserError(
                    f"{where} has run lengths for height and width {outline['size']}, its picture has {list(size)}; "
                    "correct the annotation"
                )
            counts = outline["counts"]
            if isinstance(counts, list):
                if sum(counts) != size[0] * size[1]:
                    raise ValueError(f"{sum(counts)} pixels")
                return coco_mask.frPyObjects(outline, *size)["counts"]
            encoded = counts.encode()
            coco_mask.decode({"size": list(size), "counts": encoded})  # raises if they do not fill the picture
            return encoded
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where} has run lengths that cannot be decoded ({error}); correct them") from error
    raise UserError(
        f"{where} has the segmentation {str(outline)[:60]}; give polygons of three or more corners [[x1, y1, x2, y2, "
        "...]] or run lengths, or remove the annotation"
    )


def _is_polygon(part: Any) -> bool:
    # Of four numbers pycocotools would make a box.
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(isinstance(number, int | float) for number in part)
    )
