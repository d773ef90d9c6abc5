"""Arrays on disk: made once, by one process, and mapped into memory by all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.locking import locked
from errors import UserError

VERSION = 1  # of what is kept; raise it when a change of code changes the arrays


class Cache:
    """A folder of results, each in a folder of its own named after what it was made from.

    Args:
        folder: is made when something is first kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def made(self, source: Any, make: Callable[[Path], None]) -> Path:
        """The folder made from `source`; `make` fills it, unless an earlier call or another process has.

        A folder is there whole or not at all, even if its making was interrupted.

        Args:
            source: all that decides the content, in JSON types.
            make: gets an empty folder.

        Raises:
            UserError: nothing can be written below `folder`.
        """
        target = self.folder / digest_of([VERSION, source])[:24]
        if target.exists():
            return target
        try:
            with locked(target):
                if not target.exists():
                    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.folder))
                    try:
                        make(unfinished)
                        os.replace(unfinished, target)
                    finally:
                        shutil.rmtree(unfinished, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: tokens cannot be kept there ({error.strerror}); name another folder with --data.cache"
            ) from error
        return target

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, not computed anew while its size and time of change stay the same."""
        status = path.stat()
        key = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        folder = self.made(["digest", key], lambda new: (new / "sha256").write_text(_sha256(path)) and None)
        return (folder / "sha256").read_text()


class FlatArray:
    """A one-dimensional array in a file, mapped into memory; it travels to worker processes as the file's name."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self._array: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        """The array, read-only."""
        if self._array is None:
            size = self.path.stat().st_size // self.dtype.itemsize
            # An empty file cannot be mapped.
            self._array = np.memmap(self.path, self.dtype, mode="r") if size else np.zeros(0, self.dtype)
        return self._array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


class Backward(FlatArray):
    """A flat array from its end to its beginning."""

    @property
    def array(self) -> np.ndarray:
        """The array, read-only."""
        return super().array[::-1]


class Appender:
    """Writes an array piece by piece; use as a context manager."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.file = open(path, "wb")  # noqa: SIM115  closed by __exit__

    def add(self, values: Any) -> None:
        """Append values."""
        values = np.asarray(values, self.dtype)
        values.tofile(self.file)
        self.length += len(values)

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()


def token_type(vocab_size: int) -> np.dtype:
    """The smallest unsigned integers that hold the ids."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


def digest_of(value: Any) -> str:
    """SHA-256 of a value in JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    result = hashlib.sha256()
    with open(path, "rb") as content:
        while chunk := content.read(1 << 20):
            result.update(chunk)
    return result.hexdigest()
