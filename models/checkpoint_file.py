"""Files of weights, ours and others', by path or URL."""

import os
import pickle
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor

from errors import UserError


def read_checkpoint(source: str | os.PathLike, sha256: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file, by name.

    Prefixes that training wrappers add (`module.`, `model.`, our `network.`) are taken off; of averaged and raw weights
    the averaged ones are taken.

    Args:
        source: file or http(s) URL of a state dict, of a checkpoint that holds one, or of a checkpoint of Triptych. A
            download is kept in torch.hub's cache.
        sha256: what the downloaded file must hash to, or the first characters of it.

    Returns:
        The state dict, and the class names that a checkpoint of Triptych knows (else none).

    Raises:
        UserError: the source cannot be had or read, or holds no state dict.
    """
    path = local_file(source, sha256)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{source} is no readable file of weights ({reason}): give a torch file that holds tensors and plain "
            f"values only, undamaged"
        ) from error
    names = []
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("triptych"), dict):
        names = checkpoint["triptych"]["data"].get("class_names", [])
    for key in ("state_dict_ema", "state_dict", "model"):  # timm's averaged weights come before the raw ones
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, dict) or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise UserError(f"{source} holds no state dict: give a torch file of a network's weights")
    state = {re.sub(r"^(module\.|model\.)+", "", key): value for key, value in checkpoint.items()}
    own = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    return own or state, list(names)


def local_file(source: str | os.PathLike, sha256: str | None = None) -> Path:
    """Where a file of weights is on this machine, after a download if need be; arguments as `read_checkpoint`.

    Raises:
        UserError: the source cannot be had.
    """
    remote = urlparse(str(source)).scheme in ("http", "https")
    path = _download(str(source), sha256) if remote else Path(source)
    if not path.is_file():
        raise UserError(f"there is no file of weights at {source}: correct the path")
    return path


def _download(url: str, sha256: str | None) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    place = urlparse(url).path.strip("/")
    # The Hugging Face hub has a model.safetensors for every model.
    path = folder / (place.replace("/", "--") if "/resolve/" in place else Path(place).name)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (URLError, OSError, RuntimeError) as error:  # the last one: a wrong hash
            raise UserError(f"the weights at {url} could not be downloaded: {error}") from error
    return path
