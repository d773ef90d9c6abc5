"""ELMo's published files: weights in HDF5 beside `options.json`, read and written."""

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from models.language.elmo import ELMo

CELL = "RNN_{}/RNN/MultiRNNCell/Cell{}/LSTMCell/{}"  # of a direction, a layer and a tensor
State = dict[str, Tensor]


def elmo_from_files(options: str | os.PathLike, weights: str | os.PathLike, **changes: Any) -> ELMo:
    """An ELMo of the size that `options.json` says, with the weights of the HDF5 file.

    Args:
        options: the file of sizes.
        weights: the file of weights.
        **changes: further arguments of `ELMo`, such as `dropout` or a `vocab_size` to train on with.

    Raises:
        UserError: a file cannot be read, or the two do not belong together.
    """
    network = ELMo(**{"vocab_size": None, **read_options(options), **changes})
    load_elmo(network, weights)
    return network


def read_options(file: str | os.PathLike) -> dict[str, Any]:
    """`options.json` as arguments of `ELMo`.

    Raises:
        UserError: it is no such file, or describes a network that this one cannot be.
    """
    try:
        options = json.loads(Path(file).read_text("utf-8"))
        lstm, cnn = options["lstm"], options["char_cnn"]
        found = {
            "character_size": cnn["embedding"]["dim"],
            "filters": [(width, number) for width, number in cnn["filters"]],
            "highways": cnn["n_highway"],
            "cells": lstm["dim"],
            "projection": lstm["projection_dim"],
            "layers": lstm["n_layers"],
            "cell_clip": float(lstm["cell_clip"]),
            "projection_clip": float(lstm["proj_clip"]),
            "residual": bool(lstm.get("use_skip_connections", False)),
        }
        activation, size = cnn["activation"], cnn["max_characters_per_token"]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); name ELMo's options.json") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: does not describe an ELMo of characters ({error}); name its options.json") from error
    if activation != "relu":
        raise UserError(f"{file}: char_cnn.activation is {activation!r}; only 'relu' is supported, as published")
    if size != 50:
        raise UserError(f"{file}: char_cnn.max_characters_per_token is {size}; only 50 is supported, as published")
    return found


def write_options(network: ELMo, file: str | os.PathLike) -> None:
    """Write the network's sizes as `options.json`."""
    words, first = network.words, network.lstms[0]
    options = {
        "lstm": {
            "use_skip_connections": network.residual,
            "projection_dim": network.projection,
            "cell_clip": first.cell_clip,
            "proj_clip": first.projection_clip,
            "dim": network.cells,
            "n_layers": len(network.lstms),
        },
        "char_cnn": {
            "activation": "relu",
            "filters": [[c.kernel_size[0], c.out_channels] for c in words.convolutions],
            "n_highway": len(words.highways),
            "embedding": {"dim": words.characters.shape[1]},
            "n_characters": 262,  # the table's rows and 0
            "max_characters_per_token": 50,
        },
    }
    Path(file).write_text(json.dumps(options, indent=2))


def load_elmo(network: ELMo, file: str | os.PathLike) -> None:
    """Fill an ELMo, but for its softmax, with the weights of an HDF5 file.

    Raises:
        UserError: the file cannot be read, or holds an ELMo of another size.
    """
    state = read_elmo(file)
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("softmax.")}
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not in the network" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if problems:
        raise UserError(
            f"{file}: does not fit the network ({problems[0]}); build it with the sizes of the options.json beside it"
        )
    network.load_state_dict(state, strict=False)


def save_elmo(network: ELMo, options: str | os.PathLike, weights: str | os.PathLike) -> None:
    """Write the two files from which `elmo_from_files`, and the authors' programs, read the network; no softmax."""
    h5py = _h5py(weights)
    write_options(network, options)
    with h5py.File(weights, "w") as content:
        for name, value in to_published(network.state_dict()).items():
            content.create_dataset(name, data=value.float().cpu().contiguous().numpy())


def read_elmo(file: str | os.PathLike) -> State:
    """The weights of an HDF5 file by our names.

    Raises:
        UserError: the file cannot be read, or holds no ELMo of characters.
    """
    h5py = _h5py(file)
    found: State = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = torch.from_numpy(item[...])

    try:
        with h5py.File(file, "r") as content:
            content.visititems(keep)
        return from_published(found)
    except OSError as error:
        raise UserError(f"{file}: cannot be read as HDF5 ({error}); name ELMo's file of weights") from error
    except KeyError as error:
        raise UserError(f"{file}: has no {error.args[0]}, so it is no ELMo of characters; name its weights") from error


def from_published(found: State) -> State:
    """Tensors by the files' names, by our names; KeyError if one is missing."""
    state = {"words.characters": found["char_embed"]}
    for ours, theirs in _linears(_number(found, "CNN_high_{}/W_carry")):
        state[f"{ours}.weight"] = found[theirs.format("W")].t()
        state[f"{ours}.bias"] = found[theirs.format("b")]
    for i in range(_number(found, "CNN/W_cnn_{}")):
        # (1, width, in, out) there, (out, in, width) here
        state[f"words.convolutions.{i}.weight"] = found[f"CNN/W_cnn_{i}"][0].permute(2, 1, 0)
        state[f"words.convolutions.{i}.bias"] = found[f"CNN/b_cnn_{i}"]
    for i in range(max(_number(found, CELL.format(0, "{}", "B")), 1)):
        bias, both, projection = (
            torch.stack([found[CELL.format(d, i, name)] for d in range(2)]) for name in ("B", "W_0", "W_P_0")
        )
        read = both.shape[1] - projection.shape[2]  # what is read comes first, what recurs behind it
        state[f"lstms.{i}.bias"] = _from_file(bias)
        state[f"lstms.{i}.input_weight"] = _from_file(both[:, :read])
        state[f"lstms.{i}.recurrent_weight"] = _from_file(both[:, read:])
        state[f"lstms.{i}.projection"] = projection
    return state


def to_published(state: State) -> State:
    """The reverse of `from_published`; a softmax is left out."""
    found = {"char_embed": state["words.characters"]}
    for ours, theirs in _linears(_number(state, "words.highways.{}.gate.weight")):
        found[theirs.format("W")] = state[f"{ours}.weight"].t()
        found[theirs.format("b")] = state[f"{ours}.bias"]
    for i in range(_number(state, "words.convolutions.{}.weight")):
        found[f"CNN/W_cnn_{i}"] = state[f"words.convolutions.{i}.weight"].permute(2, 1, 0)[None]
        found[f"CNN/b_cnn_{i}"] = state[f"words.convolutions.{i}.bias"]
    for i in range(_number(state, "lstms.{}.bias")):
        own = {name: state[f"lstms.{i}.{name}"] for name in ("bias", "input_weight", "recurrent_weight", "projection")}
        for d in range(2):
            both = torch.cat([own["input_weight"][d], own["recurrent_weight"][d]])
            found[CELL.format(d, i, "B")] = _to_file(own["bias"][d])
            found[CELL.format(d, i, "W_0")] = _to_file(both)
            found[CELL.format(d, i, "W_P_0")] = own["projection"][d]
    return found


def _linears(highways: int) -> list[tuple[str, str]]:
    """Linear layers by our names and by theirs, where W or b is left to be put in."""
    layers = [("words.projection", "CNN_proj/{}_proj")]
    for i in range(highways):
        layers.append((f"words.highways.{i}.gate", f"CNN_high_{i}/{{}}_carry"))
        layers.append((f"words.highways.{i}.transform", f"CNN_high_{i}/{{}}_transform"))
    return layers


def _number(state: State, name: str) -> int:
    """How many there are, numbered from 0."""
    return next(i for i in count() if name.format(i) not in state)


def _from_file(value: Tensor) -> Tensor:
    """The gates along the last axis: from input, candidate, forget, output to input, forget, output, candidate."""
    enter, candidate, keep, leave = value.chunk(4, -1)
    return torch.cat([enter, keep, leave, candidate], -1)


def _to_file(value: Tensor) -> Tensor:
    """The reverse of `_from_file`."""
    enter, keep, leave, candidate = value.chunk(4, -1)
    return torch.cat([enter, candidate, keep, leave], -1)


def _h5py(file: str | os.PathLike) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{file}: HDF5 files need the package h5py; pip install h5py") from error
    return h5py
