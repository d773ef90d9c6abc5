"""From a checkpoint to a model, without a configuration file and without trusting the file."""

import importlib
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from callbacks.checkpoint_io import load_verified
from errors import UserError
from inference.detection import DetectionPredictor

PREDICTORS = {"detection": DetectionPredictor}  # by task

# What a checkpoint may name. Anything else could run code by being imported or built.
ALLOWED = ("models.", "timm.", "torch.nn.", "torchvision.ops.")


def load(checkpoint: str | Path, device: str | torch.device | None = None, **options: Any) -> Any:
    """Load a checkpoint that train.py wrote; the averaged weights, where the run averaged them.

    Args:
        checkpoint: path of a `.ckpt` file.
        device: where to run; None takes a GPU if there is one.
        **options: of the task's predictor, such as `score_threshold`.

    Returns:
        The predictor of the checkpoint's task: `DetectionPredictor`.

    Raises:
        UserError: no such file, damaged, not written by train.py, or naming a class that is not the project's.
    """
    path = Path(checkpoint)
    content = load_verified(path)
    block = content.get("triptych")
    if not isinstance(block, dict) or block.get("data", {}).get("task") not in PREDICTORS:
        raise UserError(f"{path}: was not written by train.py of this project; train a model, or convert its weights")
    data = block["data"]
    network = block["config"]["model"]["init_args"]["network"]
    arguments = {"num_classes": len(data["class_names"])} if "class_names" in data else {}
    try:
        model = build(network, extra=arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return PREDICTORS[data["task"]](model.eval().to(device), data, **options)


def build(spec: dict[str, Any], extra: dict[str, Any] | None = None) -> nn.Module:
    """Build the object that a `class_path` with `init_args` describes, and those within it.

    Weights that a part would fetch for its start (`pretrained...: true`) are not: the checkpoint has them.

    Args:
        spec: `class_path` and `init_args`, as in a configuration.
        extra: arguments that the configuration leaves to the data.

    Raises:
        UserError: a class outside of the project; nothing was imported then.
    """
    _check(spec)
    return _build(spec, extra or {})


def _check(value: Any) -> None:
    if isinstance(value, dict):
        if "class_path" in value and not str(value["class_path"]).startswith(ALLOWED):
            raise UserError(
                f"the configuration inside names {value['class_path']!r}, which is no part of a model; "
                "it was not loaded, do not trust the file"
            )
        for inner in value.values():
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)


def _build(spec: dict[str, Any], extra: dict[str, Any]) -> Any:
    module, _, name = spec["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    arguments = {}
    hints = typing.get_type_hints(kind.__init__)
    for key, value in (spec.get("init_args") or {}).items():
        if key.startswith("pretrained") and isinstance(value, bool):
            value = False
        if isinstance(value, dict) and "class_path" in value:
            # A part that the class completes itself (a neck, say, whose width follows from the backbone) is given as
            # a function, as jsonargparse does for arguments of a Callable type.
            value = _partial(value) if _is_callable(hints.get(key)) else _build(value, {})
        arguments[key] = value
    return kind(**arguments, **{key: value for key, value in extra.items() if key not in arguments})


def _partial(spec: dict[str, Any]) -> Any:
    def factory(*args: Any) -> Any:
        module, _, name = spec["class_path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        names = [p for p in inspect.signature(kind).parameters if p not in (spec.get("init_args") or {})]
        return _build(spec, dict(zip(names, args, strict=False)))

    return factory


def _is_callable(hint: Any) -> bool:
    origins = [typing.get_origin(h) or h for h in (hint, *typing.get_args(hint))] if hint is not None else []
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        origins = origins[:1]
    return any(origin is typing.get_origin(typing.Callable[..., Any]) for origin in origins)
