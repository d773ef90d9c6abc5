"""A trained GPT or BERT for Hugging Face's transformers: `python -m tools.export_transformers best.ckpt folder`.

The folder gets `config.json`, `model.safetensors` and, where the tokeniser is one of the `tokenizers` library,
`tokenizer.json`; `AutoModelForCausalLM.from_pretrained(folder)` or `BertForPreTraining.from_pretrained(folder)` reads
it, and so does `--model.weights folder` here.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from datamodules.text.subwords import Subwords
from errors import UserError
from inference import load
from models.language.bert import BERT
from models.language.gpt import GPT
from models.language.transformers_weights import bert_to_transformers, gpt_to_transformers
from tools.command import status_of

ROLES = {"pad": "pad_token", "unk": "unk_token", "cls": "cls_token", "sep": "sep_token", "mask": "mask_token"}
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_new"}  # torch's name of the approximation -> theirs


def gpt_config(network: GPT, eos: int | None) -> dict[str, Any]:
    """What `GPT2Config` needs to build the same network."""
    block = network.blocks[0]
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": network.vocab_size,
        "n_positions": network.context_length,
        "n_embd": network.hidden_size,
        "n_layer": len(network.blocks),
        "n_head": block.attention.heads,
        "activation_function": ACTIVATIONS[block.gelu.approximate],
        "layer_norm_epsilon": network.norm.eps,
        "resid_pdrop": block.dropout.p,
        "embd_pdrop": network.dropout.p,
        "attn_pdrop": block.attention.dropout,
        "tie_word_embeddings": True,
        "bos_token_id": eos,
        "eos_token_id": eos,
    }


def bert_config(network: BERT, pad: int | None) -> dict[str, Any]:
    """What `BertConfig` needs to build the same network."""
    block = network.blocks[0]
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if network.next_sentence_head is None else "BertForPreTraining"],
        "vocab_size": network.vocab_size,
        "max_position_embeddings": network.context_length,
        "hidden_size": network.hidden_size,
        "num_hidden_layers": len(network.blocks),
        "num_attention_heads": block.attention.heads,
        "intermediate_size": block.inner.out_features,
        "type_vocab_size": network.token_types.num_embeddings,
        "hidden_act": ACTIVATIONS[block.gelu.approximate],
        "layer_norm_eps": network.norm.eps,
        "hidden_dropout_prob": network.dropout.p,
        "attention_probs_dropout_prob": block.attention.dropout,
        "tie_word_embeddings": True,
        "pad_token_id": pad,
    }


def export(checkpoint: str | Path, folder: str | Path) -> None:
    """Write the folder.

    Raises:
        UserError: the checkpoint cannot be read or is of another network; the folder holds files.
    """
    folder = Path(folder)
    predictor = load(checkpoint, device="cpu")
    network, tokenizer = getattr(predictor, "network", None), getattr(predictor, "tokenizer", None)
    if not isinstance(network, GPT | BERT):
        raise UserError(f"{checkpoint}: is neither a GPT nor a BERT; transformers has no such network")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, GPT):
        state, config = gpt_to_transformers(network.state_dict()), gpt_config(network, tokenizer.eos)
        del state["lm_head.weight"]  # the token embedding itself
    else:
        state, config = bert_to_transformers(network.state_dict()), bert_config(network, tokenizer.pad)
        for copy in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
            del state[copy]
    save_file(
        {key: value.contiguous().clone() for key, value in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if isinstance(tokenizer, Subwords):
        tokenizer.engine.save(str(folder / "tokenizer.json"))
        written = {role: tokenizer.tokens[token] for role, token in tokenizer.specials.items()}
        names = {name: written[role] for role, name in ROLES.items() if role in written}
        if tokenizer.eos is not None:
            names |= dict.fromkeys(("bos_token", "eos_token"), written["eos"])
        names["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")
    print(f"{type(network).__name__} is in {folder}")


def main(arguments: list[str] | None = None) -> int:
    """Export; 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="of a training by train.py")
    parser.add_argument("folder", help="a new folder")
    options = parser.parse_args(arguments)
    return status_of(lambda: export(options.checkpoint, options.folder))


if __name__ == "__main__":
    sys.exit(main())
