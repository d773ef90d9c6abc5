"""The pictures of a split and where their masks come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from errors import UserError


class SegmentationSamples(ABC):
    """N pictures with masks; a subclass says how a mask is made.

    Attributes:
        image_files: (N,) numpy strings, paths. An array, not a list: worker processes share it without copying.
        fingerprint: of the masks.
    """

    image_files: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.image_files)

    @abstractmethod
    def label(self, index: int) -> np.ndarray:
        """The mask of a picture at its original size: (H, W) uint8, 255 for pixels that do not count.

        Raises:
            UserError: the mask cannot be read, or holds what is no class.
        """

    @abstractmethod
    def label_name(self, index: int) -> str:
        """The mask as an error message names it: a file, or a file and a place in it."""


class MaskFiles(SegmentationSamples):
    """A mask file per picture.

    Args:
        images: paths of the pictures.
        masks: paths of their masks.
        read: from a mask's path to labels, by the mask's file ending ("" for all others).
        identity: what else makes these masks what they are (class names, colours), for the fingerprint.

    Raises:
        UserError: naming the first picture or mask that does not exist.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        read: dict[str, Callable[[str], np.ndarray]],
        identity: object = None,
    ) -> None:
        _check(images, "picture", "add it, or take it out of its list")
        _check(masks, "mask", "each picture needs one: add it, or take the picture out of its list or folder")
        self.image_files = np.array([str(image) for image in images], dtype=np.str_)
        self.mask_files = np.array([str(mask) for mask in masks], dtype=np.str_)
        self.read = read
        # Of names and sizes in bytes: to read ten thousand masks for it would take minutes on a network drive.
        digest = hashlib.sha256(repr(identity).encode())
        for image, mask in zip(images, masks, strict=True):
            digest.update(f"{image.name} {mask.name} {mask.stat().st_size}\n".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def label(self, index: int) -> np.ndarray:
        """See the base class."""
        file = str(self.mask_files[index])
        return self.read.get(Path(file).suffix, self.read[""])(file)

    def label_name(self, index: int) -> str:
        """The mask's path."""
        return str(self.mask_files[index])


def _check(files: Sequence[Path], kind: str, remedy: str) -> None:
    present: dict[Path, set[str]] = {}  # one listing per folder is quicker than a question per file
    missing = []
    for file in files:
        if file.parent not in present:
            present[file.parent] = {p.name for p in file.parent.iterdir()} if file.parent.is_dir() else set()
        if file.name not in present[file.parent]:
            missing.append(file)
    if missing:
        others = f" (the first of {len(missing)} that are missing)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}: no such {kind}{others}; {remedy}")
