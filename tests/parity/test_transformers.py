"""The same weights in Hugging Face's networks and in ours give the same numbers, and files of weights go both ways."""

import copy
import logging

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402

from errors import UserError  # noqa: E402
from models.language.bert import BERT  # noqa: E402
from models.language.generation import generate  # noqa: E402
from models.language.gpt import GPT  # noqa: E402
from models.language.language_model import IGNORE  # noqa: E402
from models.language.transformers_weights import (  # noqa: E402
    bert_from_transformers,
    bert_to_transformers,
    gpt_from_transformers,
    gpt_to_transformers,
)
from models.language.weights import load_weights  # noqa: E402

VOCAB = 83
EXACT = {"rtol": 1e-4, "atol": 2e-6}


def randomised(network):
    """All parameters off their initial values, so that a mix-up would show."""
    torch.manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.05, 0.2)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def their_gpt(activation="gelu_new"):
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=40, n_embd=32, n_layer=3, n_head=4, activation_function=activation,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return randomised(transformers.GPT2LMHeadModel(config))


def our_gpt(**changes):
    arguments = {"vocab_size": VOCAB, "layers": 3, "heads": 4, "hidden_size": 32, "context_length": 40}
    return GPT(**arguments | {"dropout": 0.0, "attention_dropout": 0.0} | changes)


def their_bert(kind="BertForPreTraining", activation="gelu"):
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, hidden_act=activation, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return randomised(getattr(transformers, kind)(config))


def our_bert(**changes):
    arguments = {"vocab_size": VOCAB, "layers": 3, "heads": 4, "hidden_size": 32, "inner_size": 64}
    return BERT(**arguments | {"context_length": 40, "dropout": 0.0, "attention_dropout": 0.0} | changes)


def masked_batch():
    """Three padded rows, and transformers' labels for every token."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([30, 11, 19])
    labels = torch.full((3, 30), IGNORE)
    positions = torch.zeros(3, 4, dtype=torch.long)
    masked_labels = torch.full((3, 4), IGNORE)
    for row in range(3):
        chosen = torch.randperm(int(length[row]), generator=generator)[: 4 - row]
        positions[row, : 4 - row] = chosen
        masked_labels[row, : 4 - row] = torch.randint(VOCAB, (4 - row,), generator=generator)
        labels[row, chosen] = masked_labels[row, : 4 - row]
    batch = {
        "input_ids": torch.randint(1, VOCAB, (3, 30), generator=generator),  # 0 is their padding, without a gradient
        "token_type_ids": (torch.arange(30) >= length[:, None] // 2).long(),
        "attention_mask": torch.arange(30) < length[:, None],
        "masked_positions": positions,
        "masked_labels": masked_labels,
        "next_sentence_label": torch.tensor([0, 1, 1]),
    }
    return batch, labels


def compare_gradients(ours, theirs, to_transformers):
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = to_transformers({name: parameter.grad for name, parameter in ours.named_parameters()})
    assert set(expected) <= set(found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **EXACT)
        assert gradient.abs().max() > 1e-6 or "key.bias" in name, name  # the softmax does not see a bias of the keys


@pytest.mark.parametrize(("activation", "gelu"), [("gelu_new", "tanh"), ("gelu", "erf")])
def test_gpt(activation, gelu):
    theirs = their_gpt(activation)
    ours = our_gpt(gelu=gelu)
    ours.load_state_dict(gpt_from_transformers(theirs.state_dict()))
    ids = torch.randint(VOCAB, (3, 25), generator=torch.Generator().manual_seed(0))
    their_output = theirs(input_ids=ids, labels=ids)
    batch = {"input_ids": ids, "targets": nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE)}
    outputs, _ = ours(batch)
    torch.testing.assert_close(outputs["logits"], their_output.logits, **EXACT)
    loss = ours.loss_terms(outputs, batch)["next_token_loss"].value()
    torch.testing.assert_close(loss, their_output.loss)
    their_output.loss.backward()
    loss.backward()
    compare_gradients(ours, theirs, gpt_to_transformers)


def test_the_two_gelus_differ():
    theirs = their_gpt()
    ours = our_gpt(gelu="erf")
    ours.load_state_dict(gpt_from_transformers(theirs.state_dict()))
    ids = torch.randint(VOCAB, (1, 25), generator=torch.Generator().manual_seed(0))
    assert (ours({"input_ids": ids})[0]["logits"] - theirs(input_ids=ids).logits).abs().max() > 1e-4


@torch.no_grad()
def test_gpt_hidden_vectors_of_padded_rows():
    theirs = their_gpt()
    ours = our_gpt().eval()
    ours.load_state_dict(gpt_from_transformers(theirs.state_dict()))
    batch, _ = masked_batch()
    mask = batch["attention_mask"]
    expected = theirs.transformer(input_ids=batch["input_ids"], attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours.encode(batch)[mask], expected[mask], **EXACT)


@pytest.mark.parametrize(("activation", "gelu"), [("gelu", "erf"), ("gelu_new", "tanh")])
def test_bert(activation, gelu):
    theirs = their_bert(activation=activation)
    ours = our_bert(gelu=gelu)
    ours.load_state_dict(bert_from_transformers(theirs.state_dict()))
    batch, labels = masked_batch()
    mask = batch["attention_mask"]
    inputs = {"input_ids": batch["input_ids"], "token_type_ids": batch["token_type_ids"]}
    their_output = theirs(
        **inputs, attention_mask=mask.long(), labels=labels, next_sentence_label=batch["next_sentence_label"]
    )
    outputs, _ = ours(batch)
    rows = torch.arange(3)[:, None]
    counted = batch["masked_labels"] != IGNORE
    at_masked = their_output.prediction_logits[rows, batch["masked_positions"]][counted]
    torch.testing.assert_close(outputs["masked_logits"], at_masked, **EXACT)
    torch.testing.assert_close(outputs["next_sentence_logits"], their_output.seq_relationship_logits, **EXACT)
    terms = ours.loss_terms(outputs, batch)
    loss = sum(term.value() for term in terms.values())
    torch.testing.assert_close(loss, their_output.loss, rtol=1e-5, atol=0)
    their_output.loss.backward()
    loss.backward()
    compare_gradients(ours, theirs, bert_to_transformers)
    hidden = theirs.bert(**inputs, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours.encode(batch)[mask], hidden[mask], **EXACT)


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM"])
def test_bert_round_trip(kind):
    theirs = their_bert(kind)
    ours = our_bert(next_sentence=kind == "BertForPreTraining")
    ours.load_state_dict(bert_from_transformers(theirs.state_dict()))
    back = bert_to_transformers(ours.state_dict())
    expected = {key: value for key, value in theirs.state_dict().items() if not key.endswith("position_ids")}
    assert set(back) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)


def test_gpt_round_trip():
    theirs = their_gpt()
    back = gpt_to_transformers(gpt_from_transformers(theirs.state_dict()))
    assert set(back) == set(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)
    other = transformers.GPT2LMHeadModel(theirs.config)
    other.load_state_dict(back)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files(tmp_path, suffix):
    theirs = their_gpt()
    file = tmp_path / f"model.{suffix}"
    if suffix == "bin":
        torch.save(theirs.state_dict(), file)
    else:
        theirs.save_pretrained(tmp_path)  # its own way to write safetensors
    ours = our_gpt()
    load_weights(ours, file)
    for key, value in gpt_from_transformers(theirs.state_dict()).items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=0, atol=0)
    torch.save({"state_dict": {f"network.{key}": value for key, value in ours.state_dict().items()}}, tmp_path / "own")
    again = our_gpt()
    load_weights(again, tmp_path / "own")
    torch.testing.assert_close(again.tokens.weight, ours.tokens.weight, rtol=0, atol=0)


def test_old_names_and_buffers():
    state = their_bert().state_dict()
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for key, value in state.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    assert set(bert_from_transformers(old)) == set(our_bert().state_dict())
    state = {key.removeprefix("transformer."): value for key, value in their_gpt().state_dict().items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert set(gpt_from_transformers(state)) == set(our_gpt().state_dict())


def test_heads_may_be_missing_or_in_vain(tmp_path, caplog):
    encoder = their_bert("BertModel")
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    ours = our_bert()
    before = copy.deepcopy(ours.masked_head.state_dict())
    with caplog.at_level(logging.WARNING):
        load_weights(ours, tmp_path / "encoder.safetensors")
    assert "begin afresh: masked_head.bias" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in ours.masked_head.state_dict().items())
    torch.testing.assert_close(ours.tokens.weight, encoder.embeddings.word_embeddings.weight, rtol=0, atol=0)
    caplog.clear()
    torch.save(their_bert().state_dict(), tmp_path / "both.bin")
    with caplog.at_level(logging.WARNING):
        load_weights(our_bert(next_sentence=False), tmp_path / "both.bin")
    assert "are not used: pooler.dense.weight" in caplog.text


def test_what_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "gpt.bin"
    torch.save(their_gpt().state_dict(), file)
    with pytest.raises(UserError, match=r"tokens.weight is \(83, 32\) there and \(84, 32\) here"):
        load_weights(our_gpt(vocab_size=84), file)
    with pytest.raises(UserError, match=r"blocks\.3.* is missing"):
        load_weights(our_gpt(layers=4), file)
    with pytest.raises(UserError, match=r"blocks\.2.* is unknown here"):
        load_weights(our_gpt(layers=2), file)
    with pytest.raises(UserError, match="do not fit this BERT"):
        load_weights(our_bert(), file)
    with pytest.raises(UserError, match="no file of weights"):
        load_weights(our_gpt(), tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of use")
    with pytest.raises(UserError, match="no readable safetensors file"):
        load_weights(our_gpt(), tmp_path / "bad.safetensors")
    state = dict(their_gpt().state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        gpt_from_transformers(state)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_text(use_cache):
    theirs = their_gpt()
    ours = our_gpt()
    ours.load_state_dict(gpt_from_transformers(theirs.state_dict()))
    prompts = torch.randint(1, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    expected = theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=30, pad_token_id=0
    )
    texts = generate(ours, prompts, max_new_tokens=30, temperature=0, stop_token=0, use_cache=use_cache)
    for text, row in zip(texts, expected, strict=True):
        assert text.tolist() == row[: len(text)].tolist()
        assert not row[len(text) :].any()
    assert any(len(text) == 38 for text in texts)
