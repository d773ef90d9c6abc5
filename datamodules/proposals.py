"""Boxes that may hold an object, found by something else than the detector, and kept on disk."""

import contextlib
import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.images import CorruptImageError, read_image
from errors import UserError

# A proposal travels through the augmentations as an object of this label.
PROPOSAL = -2


class ProposalSource(ABC):
    """Finds boxes in pictures, and keeps what it found.

    The boxes of a picture are kept under a hash of its pixels, in a folder named after a hash of the settings: a
    picture that was changed is searched anew, equal pictures of several datasets are searched once, and a search that
    was interrupted goes on where it ended. Files appear whole or not at all, whatever the number of processes.

    Args:
        cache: folder to keep boxes in; None searches again whenever a picture is read.
        workers: processes that search before a training; None is one per CPU at hand.
    """

    def __init__(self, *, cache: str | None, workers: int | None = None) -> None:
        if workers is not None and workers < 0:
            raise UserError(f"data.proposals.workers is {workers}; it must be at least 0")
        self.cache = cache
        self.workers = workers

    @abstractmethod
    def search(self, image: np.ndarray) -> np.ndarray:
        """Boxes (P, 4) float32 XYXY in pixels of a picture (H, W, 3) uint8 RGB, the best first; always the same."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The arguments that the boxes depend on, in JSON types."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Of the boxes: another number for other boxes from the same settings."""

    @property
    def folder(self) -> Path | None:
        """Where the boxes of these settings are."""
        if self.cache is None:
            return None
        name = type(self).__name__
        digest = hashlib.sha256(json.dumps([name, self.version, self.settings], sort_keys=True).encode()).hexdigest()
        return Path(self.cache) / f"{name}-{digest[:12]}"

    def boxes(self, image: np.ndarray) -> np.ndarray:
        """As `search`, from the cache if it holds them.

        Raises:
            UserError: the cache cannot be written to.
        """
        if self.folder is None:
            return self.search(image)
        file = self._file(image)
        if (found := _load(file)) is not None:
            return found
        found = self.search(image)
        try:
            _save(file, found)
        except OSError as error:
            raise self._refusal(error) from error
        return found

    def prepare(
        self,
        files: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        fingerprint: str,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Search all pictures of a split, before they are needed.

        Every process searches its share. Pictures that cannot be read are left to the dataset to report. That a split
        is done is noted, so that it is not even looked at the next time.

        Args:
            files: of the pictures.
            sizes: (height, width) as the annotations say.
            fingerprint: of the split.
            rank: of this process.
            world: number of processes.

        Raises:
            UserError: the cache cannot be written to.
        """
        if self.folder is None:
            return
        done = self.folder / f"{fingerprint}-{rank}-of-{world}.done"
        if done.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error
        pictures = _Pictures(self, files[rank::world], sizes[rank::world])
        workers = max(len(os.sched_getaffinity(0)) // world, 1) if self.workers is None else self.workers
        loader = DataLoader(pictures, batch_size=None, num_workers=0 if workers == 1 else workers)
        for _ in tqdm(
            loader, desc=f"{type(self).__name__}, kept in {self.folder}", disable=rank > 0, leave=False, mininterval=1
        ):
            pass
        done.touch()

    def description(self) -> dict[str, Any]:
        """The source in JSON types, for a checkpoint; see `known_source`."""
        return {"kind": type(self).__name__, "settings": self.settings}

    def _file(self, image: np.ndarray) -> Path:
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image))
        name = digest.hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.npy"

    def _refusal(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder}: proposals cannot be kept there ({error.strerror}); name another folder with "
            "--data.proposals.cache"
        )


class _Pictures(Dataset):
    """Reading one searches it."""

    def __init__(self, source: ProposalSource, files: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
        self.source = source
        self.files = files
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        with contextlib.suppress(CorruptImageError):
            self.source.boxes(read_image(str(self.files[index]), self.sizes[index]))
        return index


def with_proposals(objects: dict[str, np.ndarray], boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Append proposals (P, 4) to the objects of a picture, as objects of the label PROPOSAL.

    Whatever moves the boxes of the objects moves the proposals in the same way.
    """
    count = len(boxes)
    return {
        **objects,
        "boxes": np.concatenate([objects["boxes"], boxes]).astype(np.float32),
        "labels": np.concatenate([objects["labels"], np.full(count, PROPOSAL, np.int64)]),
        "iscrowd": np.concatenate([objects["iscrowd"], np.zeros(count, bool)]),
    }


def _load(file: Path) -> np.ndarray | None:
    try:
        return np.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{file}: kept proposals cannot be read ({error}); delete the file, and they are searched anew"
        ) from error


def _save(file: Path, boxes: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.save(stream, boxes.astype(np.float32))
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
