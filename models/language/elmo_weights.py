"""ELMo's published files: weights in HDF5 beside `options.json`, read and written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from models.language.elmo import ELMo

# The file's name of a tensor, its parts here, joined along their first axis, and how they become each other.
Place = tuple[str, list[Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


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
    h5py = _h5py(file)
    try:
        with h5py.File(file, "r") as content, torch.no_grad():
            for name, parts, convert, back in _places(network):
                if name not in content:
                    raise UserError(f"{file}: has no {name}; is it the ELMo that the network is built as?")
                wanted = back(torch.cat(parts)).shape
                if content[name].shape != wanted:
                    raise UserError(
                        f"{file}: {name} is of shape {content[name].shape}, the network needs {tuple(wanted)}; build "
                        "it with the sizes of the options.json beside the file"
                    )
                value = convert(torch.from_numpy(content[name][...]))
                for part, values in zip(parts, value.split([len(part) for part in parts]), strict=True):
                    part.copy_(values)
    except OSError as error:
        raise UserError(f"{file}: cannot be read as HDF5 ({error}); name ELMo's file of weights") from error


def save_elmo(network: ELMo, options: str | os.PathLike, weights: str | os.PathLike) -> None:
    """Write the two files from which `elmo_from_files`, and the authors' programs, read the network; no softmax."""
    h5py = _h5py(weights)
    write_options(network, options)
    with h5py.File(weights, "w") as content:
        for name, parts, _, convert in _places(network):
            value = convert(torch.cat(parts).detach().float().cpu())
            content.create_dataset(name, data=value.contiguous().numpy())


def _places(network: ELMo) -> list[Place]:
    words = network.words
    places: list[Place] = [("char_embed", [words.characters], _as_is, _as_is)]
    for i, convolution in enumerate(words.convolutions):
        places += [
            # (1, width, in, out) there, (out, in, width) here
            (
                f"CNN/W_cnn_{i}",
                [convolution.weight],
                lambda w: w[0].permute(2, 1, 0),
                lambda w: w.permute(2, 1, 0)[None],
            ),
            (f"CNN/b_cnn_{i}", [convolution.bias], _as_is, _as_is),
        ]
    linears = [("CNN_proj/{}_proj", words.projection)]
    for i, highway in enumerate(words.highways):
        linears += [(f"CNN_high_{i}/{{}}_carry", highway.gate), (f"CNN_high_{i}/{{}}_transform", highway.transform)]
    for name, linear in linears:
        places += [
            (name.format("W"), [linear.weight], torch.t, torch.t),
            (name.format("b"), [linear.bias], _as_is, _as_is),
        ]
    for layer, lstm in enumerate(network.lstms):
        for d in range(2):
            name = f"RNN_{d}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            both = [lstm.input_weight[d], lstm.recurrent_weight[d]]
            places += [
                (f"{name}/B", [lstm.bias[d]], _from_file, _to_file),
                (f"{name}/W_0", both, _from_file, _to_file),
                (f"{name}/W_P_0", [lstm.projection[d]], _as_is, _as_is),
            ]
    return places


def _as_is(value: Tensor) -> Tensor:
    return value


def _kernel(value: Tensor) -> Tensor:
    return value[0].permute(2, 1, 0)


def _kernel_in_file(value: Tensor) -> Tensor:
    return value.permute(2, 1, 0)[None]


def _from_file(value: Tensor) -> Tensor:
    """The gates input, candidate, forget, output along the last axis, in our order."""
    enter, candidate, keep, leave = value.chunk(4, -1)
    return torch.cat([enter, keep, leave, candidate], -1)


def _to_file(value: Tensor) -> Tensor:
    enter, keep, leave, candidate = value.chunk(4, -1)
    return torch.cat([enter, candidate, keep, leave], -1)


def _h5py(file: str | os.PathLike) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{file}: HDF5 files need the package h5py; pip install h5py") from error
    return h5py
