"""From a checkpoint to a model, without a configuration file and without trusting the file."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from callbacks.checkpoint_io import load_verified
from datamodules.text.making import from_state
from errors import UserError
from inference.detection import DetectionPredictor
from inference.language import language_predictor
from inference.segmentation import SegmentationPredictor
from inference.text_classification import TextClassificationPredictor

PREDICTORS: dict[str, Callable[..., Any]] = {  # by task
    "detection": DetectionPredictor,
    "segmentation": SegmentationPredictor,
    "language": language_predictor,
    "text_classification": TextClassificationPredictor,
}

# What a checkpoint may name: classes of this project's networks, and modules of PyTorch. Anything else could run code
# by being imported or called.
OURS = "models."
MODULES = ("torch.nn.", "torchvision.ops.")


def load(checkpoint: str | Path, device: str | torch.device | None = None, **options: Any) -> Any:
    """Load a checkpoint that train.py wrote; the averaged weights, where the run averaged them.

    Args:
        checkpoint: path of a `.ckpt` file.
        device: where to run; None takes a GPU if there is one.
        **options: of the task's predictor, such as `score_threshold`.

    Returns:
        The predictor of the checkpoint's task: `DetectionPredictor`, `SegmentationPredictor`, `CausalPredictor`,
        `MaskedPredictor`, `TextClassificationPredictor`.

    Raises:
        UserError: no such file, damaged, not written by train.py, naming a class that is not the project's, or of a
            network that is another one by now.
    """
    path = Path(checkpoint)
    content = load_verified(path)
    try:
        data = content["triptych"]["data"]
        predictor = PREDICTORS[data["task"]]
        network = content["triptych"]["config"]["model"]["init_args"]["network"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: was not written by train.py of this project; train a model, or convert its weights"
        ) from error
    prefix = "network."
    try:
        model = build(with_vocabulary(network, data), extra=data_knows(data))
        weights = content["state_dict"].items()
        model.load_state_dict({key.removeprefix(prefix): v for key, v in weights if key.startswith(prefix)})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, ImportError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: its network is another one in this version of the project ({reason}); use the version that "
            "trained it"
        ) from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return predictor(model.eval().to(device), data, **options)


def data_knows(data: dict[str, Any]) -> dict[str, int]:
    """What the command line links from the data to the network."""
    known = {"num_classes": len(data["class_names"]) or 1} if "class_names" in data else {}  # 1 is regression
    return known | ({"vocab_size": from_state(data["tokenizer"]).vocab_size} if "tokenizer" in data else {})


def with_vocabulary(spec: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """A network's description whose `encoder`, of a classifier, knows the size of the vocabulary."""
    arguments = spec.get("init_args") or {}
    encoder = arguments.get("encoder")
    if "tokenizer" not in data or not isinstance(encoder, dict) or "class_path" not in encoder:
        return spec
    inner = {"vocab_size": data_knows(data)["vocab_size"], **(encoder.get("init_args") or {})}
    return {**spec, "init_args": {**arguments, "encoder": {**encoder, "init_args": inner}}}


def build(spec: dict[str, Any], extra: dict[str, Any] | None = None) -> nn.Module:
    """Build the object that a `class_path` with `init_args` describes, and those within it.

    Weights that a part would fetch for its start (`pretrained...: true`) are not: the checkpoint has them.

    Args:
        spec: `class_path` and `init_args`, as in a configuration.
        extra: arguments that the configuration leaves to the data, where the class has them.

    Raises:
        UserError: a class outside of the project; nothing was imported then.
    """
    _check(spec)
    return _build(spec, extra or {})


def _check(value: Any) -> None:
    if isinstance(value, dict):
        if "class_path" in value and not str(value["class_path"]).startswith((OURS, *MODULES)):
            raise _refusal(value["class_path"])
        for inner in value.values():
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)


def _refusal(class_path: str) -> UserError:
    return UserError(
        f"the configuration inside names {class_path!r}, which is no part of a model; it was not loaded, do not trust "
        "the file"
    )


def _import(class_path: str) -> type:
    """The class of a checked path. No function, and nothing that a module of ours merely imported."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    ours = isinstance(kind, type) and kind.__module__.startswith(OURS)
    if not ours and not (isinstance(kind, type) and issubclass(kind, nn.Module) and class_path.startswith(MODULES)):
        raise _refusal(class_path)
    return kind


def _build(spec: dict[str, Any], extra: dict[str, Any]) -> Any:
    kind = _import(spec["class_path"])
    hints = typing.get_type_hints(kind.__init__)
    arguments = {key: _value(key, value, hints.get(key)) for key, value in (spec.get("init_args") or {}).items()}
    parameters = inspect.signature(kind).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return kind(**{key: value for key, value in extra.items() if takes_all or key in parameters} | arguments)


def _value(key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return [_value(key, inner, None) for inner in value]
    if isinstance(value, dict) and "class_path" in value:
        # A part that the class completes itself (a neck, say, whose width follows from the backbone) is given as a
        # function, as jsonargparse does for arguments of a Callable type.
        return _factory(value) if _is_callable(hint) else _build(value, {})
    return False if key.startswith("pretrained") and value is True else value


def _factory(spec: dict[str, Any]) -> Callable[..., Any]:
    given = spec.get("init_args") or {}
    missing = [name for name in inspect.signature(_import(spec["class_path"])).parameters if name not in given]
    return lambda *args: _build(spec, dict(zip(missing, args, strict=False)))


def _is_callable(hint: Any) -> bool:
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    return any((typing.get_origin(choice) or choice) is Callable for choice in choices)
