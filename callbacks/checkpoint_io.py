"""Checkpoints that are whole or not there, and are known to be whole."""

import hashlib
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from errors import UserError

log = logging.getLogger(__name__)
TEMPORARY = ".unfinished"


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint atomically and durably, with its SHA-256 beside it.

    The file is written under a temporary name in the same directory, synced, and renamed. `<name>.sha256` is written
    (in the same way) before the rename, with the hash of the new file before those of the one it replaces, and once
    more after it: whenever the machine stops, the checkpoint in place matches one of its hashes. (Lightning writes the
    temporary file to $TMPDIR; from another file system the final move is a copy, and a kill leaves half a checkpoint,
    Lightning #21253.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; errors of the file system are raised and leave the old file as it was."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"*{TEMPORARY}"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                _sync(file)
            new = _sha256(temporary)
            if path.exists():
                old = hash_file(path).read_text().split() if hash_file(path).exists() else [_sha256(path)]
                _write(hash_file(path), "\n".join([new, *old]) + "\n")
            else:
                _write(hash_file(path), new + "\n")
            os.replace(temporary, path)
            _sync_directory(path.parent)
            _write(hash_file(path), new + "\n")
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint; only tensors and plain types are accepted, code in it is never run."""
        return load_verified(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint with its hash."""
        Path(path).unlink(missing_ok=True)
        hash_file(Path(path)).unlink(missing_ok=True)


def load_verified(path: Path) -> dict[str, Any]:
    """Read a checkpoint after checking it.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors and plain types.
    """
    fault = find_fault(path)
    if fault:
        raise UserError(f"{path}: {fault}; use another checkpoint (--ckpt_path last takes the newest that is whole)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({str(error).splitlines()[0]}); use another one"
        ) from error


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None if nothing is, or if it came without a hash."""
    if not path.is_file():
        return "no such checkpoint"
    hashes = hash_file(path)
    if hashes.exists() and _sha256(path) not in hashes.read_text().split():
        return "the checkpoint is damaged (its content has not the hash it was written with)"
    if not hashes.exists() and not zipfile.is_zipfile(path):  # the directory of a zip archive comes last
        return "the checkpoint is damaged or is none (PyTorch writes zip archives)"
    return None


def resolve_checkpoint(choice: str, run_dir: Path) -> Path:
    """The checkpoint that `--ckpt_path` means.

    Args:
        choice: `last` for the newest whole one of the run, `best` for the one with the highest score, or a path.
        run_dir: the run.

    Raises:
        UserError: there is none, or the one asked for is damaged.
    """
    folder = run_dir / "checkpoints"
    if choice != "last":
        path = folder / "best.ckpt" if choice == "best" else Path(choice)
        fault = find_fault(path)
        if fault:
            raise UserError(f"{path}: {fault}; name another one with --ckpt_path")
        return path
    damaged = []
    for path in sorted(folder.glob("last-*.ckpt"), key=lambda path: int(path.stem.split("-")[1]), reverse=True):
        fault = find_fault(path)
        if fault is None:
            for found in damaged:
                log.warning("%s; going on from %s instead", found, path)
            return path
        damaged.append(f"{path}: {fault}")
    raise UserError(f"{folder}: has no whole checkpoint to go on from; leave out --ckpt_path to start anew")


def hash_file(path: Path) -> Path:
    """Where the hash of a checkpoint is kept."""
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    with open(temporary, "w") as file:
        file.write(text)
        _sync(file)
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
