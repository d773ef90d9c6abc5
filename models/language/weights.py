"""Start a language model, or what is built on one, from weights that somebody trained."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from errors import UserError
from models.checkpoint_file import local_file, read_checkpoint
from models.language.elmo_weights import read_elmo
from models.language.transformers_weights import State, bert_from_transformers, gpt_from_transformers

log = logging.getLogger(__name__)

HUB = "hub:"
ENCODER = "encoder."  # the language model within a classifier
# Foreign layouts: a part of a name that gives the layout away -> converter to our names.
LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    "wte.weight": gpt_from_transformers,
    "embeddings.word_embeddings.weight": bert_from_transformers,
}
# Parts that a file may lack (they keep their fresh values) or hold in vain: heads, BERT's pooler, ELMo's softmax.
HEADS = ("masked_head.", "pooler.", "next_sentence_head.", "softmax.")
# The files that transformers' `save_pretrained` writes, as far as they hold all weights in one.
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")


def load_weights(network: nn.Module, source: str | os.PathLike, tokenizer: dict[str, Any] | None = None) -> None:
    """Load trained weights into a language model, or into the language model within a classifier, in place.

    Heads may be missing from the source or from the network: a checkpoint of BERT starts a classifier's encoder, and a
    fine-tuned classifier's encoder goes back into BERT. A warning says what began afresh or was not used.

    Args:
        network: a `LanguageModel`, or a network that has one as its `encoder`.
        source: a checkpoint of Triptych; a file of transformers' GPT-2 or BERT (torch or `.safetensors`), the folder
            that its `save_pretrained` wrote; ELMo's `.hdf5`; or `hub:NAME`. Files may be http(s) URLs.
        tokenizer: state of the tokeniser that the network is used with. A checkpoint of Triptych knows its own; ids
            would mean other tokens if the two differed.

    Raises:
        UserError: the source cannot be had or read, or does not fit the network.
    """
    state, known = _read(str(source))
    if tokenizer is not None and known is not None and tokenizer != known:
        raise UserError(
            f"the weights {source} were trained with another tokeniser: take theirs by --data.tokenizer {source}"
        )
    own = network.state_dict()
    state = _placed(_converted(state), own)
    heads = _heads(network)
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    resized = [key for key in own if key in state and state[key].shape != own[key].shape]
    problems = [f"{key} is missing" for key in missing if not key.startswith(heads)]
    problems += [f"{key} is unknown here" for key in unknown if not key.startswith(heads)]
    problems += [
        f"{key} is {tuple(state[key].shape)} there and {tuple(own[key].shape)} here"
        for key in resized
        if not key.startswith(heads) or key.startswith(HEADS)
    ]
    if len(missing) == len(own):
        problems.insert(0, "no name of theirs is known")
    if problems:
        raise UserError(
            f"the weights {source} do not fit this {type(network).__name__} ({problems[0]}, and {len(problems) - 1} "
            "more): build it with the vocabulary and sizes that they were trained with"
        )
    for keys, what in ((missing + resized, "begin afresh"), (unknown, "are not used")):
        if keys:
            log.warning("of the weights %s, these %s: %s", source, what, ", ".join(keys))
    network.load_state_dict({k: v for k, v in state.items() if k in own and k not in resized}, strict=False)


def _heads(network: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of all parts that another network may not have."""
    if not any(key.startswith(ENCODER) for key in network.state_dict()):
        return (*HEADS, "head.")
    own = {key.partition(".")[0] + "." for key in network.state_dict()} - {ENCODER}
    return (*own, *(ENCODER + head for head in HEADS), *HEADS)


def _converted(state: State) -> State:
    """In our names, whoever wrote it."""
    for mark, convert in LAYOUTS.items():
        if any(key.endswith(mark) for key in state):
            return convert(state)
    return state


def _placed(state: State, own: Mapping[str, Tensor]) -> State:
    """With or without the prefix of an encoder, as the network has it."""
    there = any(key.startswith(ENCODER) for key in state)
    here = any(key.startswith(ENCODER) for key in own)
    if here and not there:
        return {ENCODER + key: value for key, value in state.items()}
    if there and not here:  # of a classifier: what is not of the encoder is its head
        inner = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
        rest = {f"head.{key}": value for key, value in state.items() if not key.startswith(ENCODER)}
        return inner | rest
    return state


def _read(source: str) -> tuple[State, dict[str, Any] | None]:
    """The tensors, and the state of the tokeniser that they were trained with where the file says it."""
    if source.startswith(HUB):
        return _read(_from_hub(source.removeprefix(HUB)))
    path = Path(source)
    if path.is_dir():
        file = next((path / name for name in IN_FOLDER if (path / name).is_file()), None)
        if file is None:
            raise UserError(f"the folder {source} has none of {', '.join(IN_FOLDER)}: name a file of weights")
        return _read(str(file))
    if urlparse(source).path.endswith((".hdf5", ".h5")):
        return read_elmo(local_file(source)), None
    if not urlparse(source).path.endswith(".safetensors"):
        return read_checkpoint(source)[0], tokenizer_of(local_file(source))
    try:
        return load_file(local_file(source)), None
    except SafetensorError as error:
        raise UserError(f"{source} is no readable safetensors file ({error}): give an undamaged one") from error


def tokenizer_of(file: Path) -> dict[str, Any] | None:
    """The state of the tokeniser in a checkpoint of Triptych; None in other torch files."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    block = content.get("triptych") if isinstance(content, dict) else None
    return block["data"].get("tokenizer") if isinstance(block, dict) else None


def _from_hub(name: str) -> str:
    """The file of a model on the Hugging Face hub, fetched into its cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(f"weights {HUB}{name} need the package huggingface_hub: pip install huggingface_hub") from error
    reasons = []
    for file in IN_FOLDER:
        try:
            return hf_hub_download(name, file)
        except Exception as error:  # of the network, of the hub, or of the name: all say themselves what is wrong
            reasons.append(" ".join(str(error).split())[:200])
    raise UserError(f"weights {HUB}{name} cannot be fetched ({reasons[0]}); check the name and the network")
