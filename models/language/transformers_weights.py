"""Weights of GPT-2 and BERT in the layout of Hugging Face's transformers, to and from ours."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from errors import UserError

State = dict[str, Tensor]

# Their modules and ours; * is the number of a layer.
GPT_MODULES = {
    "wte": "tokens",
    "wpe": "positions",
    "h.*.ln_1": "blocks.*.attention_norm",
    "h.*.attn.c_attn": "blocks.*.attention.qkv",
    "h.*.attn.c_proj": "blocks.*.attention.out",
    "h.*.ln_2": "blocks.*.mlp_norm",
    "h.*.mlp.c_fc": "blocks.*.inner",
    "h.*.mlp.c_proj": "blocks.*.outer",
    "ln_f": "norm",
}
BERT_MODULES = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.*.attention.self.query": "blocks.*.attention.query",
    "encoder.layer.*.attention.self.key": "blocks.*.attention.key",
    "encoder.layer.*.attention.self.value": "blocks.*.attention.value",
    "encoder.layer.*.attention.output.dense": "blocks.*.attention.out",
    "encoder.layer.*.attention.output.LayerNorm": "blocks.*.attention_norm",
    "encoder.layer.*.intermediate.dense": "blocks.*.inner",
    "encoder.layer.*.output.dense": "blocks.*.outer",
    "encoder.layer.*.output.LayerNorm": "blocks.*.mlp_norm",
    "pooler.dense": "pooler.dense",
    "cls.predictions.transform.dense": "masked_head.dense",
    "cls.predictions.transform.LayerNorm": "masked_head.norm",
    "cls.predictions": "masked_head",
    "cls.seq_relationship": "next_sentence_head",
}
TRANSPOSED = (".attn.c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # transformers' Conv1D keeps (in, out)
GPT_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old files hold
PARTS = ("query", "key", "value")


def gpt_from_transformers(state: Mapping[str, Tensor]) -> State:
    """The state dict of `GPT` from that of transformers' `GPT2LMHeadModel` or `GPT2Model`.

    Raises:
        UserError: the output layer is not the token embedding.
    """
    state = {key.removeprefix("transformer."): value for key, value in state.items() if not key.endswith(GPT_BUFFERS)}
    _drop_tied(state, "lm_head.weight", "wte.weight")
    state = {key: value.t() if key.endswith(TRANSPOSED) else value for key, value in state.items()}
    return _renamed(state, GPT_MODULES)


def gpt_to_transformers(state: Mapping[str, Tensor]) -> State:
    """The inverse: the state dict of `GPT2LMHeadModel`."""
    theirs = _renamed(state, {ours: theirs for theirs, ours in GPT_MODULES.items()})
    theirs = {
        f"transformer.{key}": (value.t().contiguous() if key.endswith(TRANSPOSED) else value)
        for key, value in theirs.items()
    }
    return theirs | {"lm_head.weight": state["tokens.weight"]}


def bert_from_transformers(state: Mapping[str, Tensor]) -> State:
    """The state dict of `BERT` from that of transformers' `BertForPreTraining`, `BertForMaskedLM` or `BertModel`.

    Raises:
        UserError: the output layer is not the token embedding.
    """
    # Files converted from TensorFlow call the parameters of layer normalisation gamma and beta.
    state = {
        re.sub(r"^bert\.", "", key)
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias"): value
        for key, value in state.items()
        if not key.endswith("embeddings.position_ids")
    }
    _drop_tied(state, "cls.predictions.decoder.weight", "embeddings.word_embeddings.weight")
    _drop_tied(state, "cls.predictions.decoder.bias", "cls.predictions.bias")
    state = _renamed(state, BERT_MODULES)
    for key in [key for key in state if ".attention.query." in key]:
        parts = [key.replace(".query.", f".{part}.") for part in PARTS]
        if all(part in state for part in parts):
            state[key.replace(".query.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])
    return state


def bert_to_transformers(state: Mapping[str, Tensor]) -> State:
    """The inverse: the state dict of `BertForPreTraining`, or of `BertForMaskedLM` where there are no pairs."""
    split = {}
    for key, value in state.items():
        if ".attention.qkv." in key:
            split |= {key.replace(".qkv.", f".{part}."): v for part, v in zip(PARTS, value.chunk(3), strict=True)}
        else:
            split[key] = value
    theirs = _renamed(split, {ours: theirs for theirs, ours in BERT_MODULES.items()})
    theirs = {key if key.startswith("cls.") else f"bert.{key}": value for key, value in theirs.items()}
    return theirs | {
        "cls.predictions.decoder.weight": state["tokens.weight"],
        "cls.predictions.decoder.bias": state["masked_head.bias"],
    }


def _renamed(state: Mapping[str, Tensor], modules: dict[str, str]) -> State:
    """The state with its modules renamed; unknown names stay as they are."""
    result = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        number = re.search(r"(?<=\.)\d+(?=\.)", module)
        pattern = module if number is None else module[: number.start()] + "*" + module[number.end() :]
        new = modules.get(pattern, pattern)
        result[(new if number is None else new.replace("*", number[0])) + "." + leaf] = value
    return result


def _drop_tied(state: State, copy: str, original: str) -> None:
    """Remove the copy of a shared tensor, having made sure that it is one."""
    tied = state.pop(copy, None)
    if tied is not None and not torch.equal(tied, state[original]):
        raise UserError(f"the weights' {copy} differs from {original}: only networks that share the two can be read")
