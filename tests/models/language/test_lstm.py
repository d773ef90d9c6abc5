import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.language.generation import generate, score
from models.language.lstm import LSTM

PLAIN = {
    "dropout": 0, "hidden_dropout": 0, "input_dropout": 0, "word_dropout": 0, "weight_dropout": 0,
    "activation_penalty": 0, "change_penalty": 0,
}  # fmt: skip
TINY = {"vocab_size": 11, "embedding_size": 6, "cells": 8, "layers": 2}


def make(seed=0, **options):
    torch.manual_seed(seed)
    return LSTM(**{**TINY, **PLAIN, **options})


def batch(rows=3, steps=5, seed=0):
    torch.manual_seed(seed)
    ids = torch.randint(11, (rows, steps + 1))
    return {"input_ids": ids[:, :-1], "targets": ids[:, 1:], "fresh": torch.ones(rows).bool()}


@pytest.mark.parametrize(("words", "parameters"), [(10_000, 24_221_600), (33_278, 33_556_078)])
def test_published_sizes(words, parameters):
    """24M on Penn Treebank and 33M on WikiText-2 (Merity et al. 2018, tables 1 and 2)."""
    with torch.device("meta"):
        network = LSTM(vocab_size=words)
    assert sum(p.numel() for p in network.parameters()) == parameters
    layers = [4 * (h * (i + h) + 2 * h) for i, h in ((400, 1150), (1150, 1150), (1150, 400))]
    assert layers == [7_139_200, 10_589_200, 2_483_200]
    assert parameters == words * 400 + words + sum(layers)
    assert network.published["parameters"] == parameters and not make().published


@pytest.mark.parametrize("training", [True, False])
def test_without_options_it_is_a_plain_lstm(training):
    network = make(cells=6, layers=3).train(training)
    peer = nn.LSTM(6, 6, 3, batch_first=True)
    layers = [(k, lstm.state_dict()) for k, lstm in enumerate(network.lstms)]
    peer.load_state_dict({name.replace("l0", f"l{k}"): v for k, state in layers for name, v in state.items()})
    sample = batch()
    expected, state = peer(F.embedding(sample["input_ids"], network.tokens.weight))
    outputs, found = network(sample)
    torch.testing.assert_close(outputs["logits"], expected @ network.tokens.weight.T + network.head.bias)
    for part in (0, 1):
        torch.testing.assert_close(torch.stack([layer[part] for layer in found]), state[part])
    torch.testing.assert_close(network.encode(sample), expected)
    assert list(network.loss_terms(outputs, sample)) == ["next_token_loss"]


def test_state_goes_on_but_for_fresh_rows():
    network = make().eval()
    sample = batch(rows=2, steps=6)
    whole = network(sample)[0]["logits"]
    state, parts = None, []
    for k in range(3):
        window = {"input_ids": sample["input_ids"][:, 2 * k : 2 * k + 2], "fresh": torch.tensor([k == 0, k != 1])}
        outputs, state = network(window, state)
        parts.append(outputs["logits"])
    joined = torch.cat(parts, 1)
    torch.testing.assert_close(joined[0], whole[0])
    torch.testing.assert_close(joined[1, :4], whole[1, :4])
    alone = network({"input_ids": sample["input_ids"][1:, 4:]})[0]["logits"][0]
    torch.testing.assert_close(joined[1, 4:], alone)
    assert (alone - whole[1, 4:]).abs().max() > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights(tied):
    network = make(tied=tied)
    assert (network.head.weight is network.tokens.weight) == tied
    assert network.hidden_size == (6 if tied else 8)
    assert network.encode(batch()).shape == (3, 5, network.hidden_size)
    own = {id(p) for p in network.parameters()} - {id(p) for p in network.head_parameters()}
    network.encode(batch()).sum().backward()
    assert own == {id(p) for p in network.parameters() if p.grad is not None}


def test_locked_dropout_holds_for_all_steps_of_a_row():
    network = make().train()
    x = torch.ones(4, 7, 500)
    dropped = network._locked(x, 0.3)
    assert torch.equal(dropped, dropped[:, :1].expand_as(x))
    assert not torch.equal(dropped[0], dropped[1])
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.05)
    assert network.eval()._locked(x, 0.3) is x


def test_word_dropout_takes_words_out_of_a_whole_batch():
    network = make(vocab_size=400, word_dropout=0.25).train()
    ids = torch.arange(400).repeat(2, 1)
    vectors = network._embed(ids)
    gone = (vectors == 0).all(-1)
    assert torch.equal(gone[0], gone[1])
    assert gone[0].float().mean() == pytest.approx(0.25, abs=0.07)
    kept = ~gone[0]
    torch.testing.assert_close(vectors[0][kept], network.tokens.weight[kept] / 0.75)
    assert torch.equal(network.eval()._embed(ids)[0], network.tokens.weight)


def test_dropped_recurrent_weights_get_no_gradient():
    network = make(weight_dropout=0.4, cells=40, embedding_size=40).train()
    network(batch(steps=9))[0]["logits"].square().sum().backward()
    for lstm in network.lstms:
        assert (lstm.weight_hh_l0.grad == 0).float().mean() == pytest.approx(0.4, abs=0.04)
        assert (lstm.weight_ih_l0.grad == 0).float().mean() < 0.01
    network.eval()
    assert torch.equal(network(batch())[0]["logits"], network(batch())[0]["logits"])


@pytest.mark.parametrize("option", ["dropout", "hidden_dropout", "input_dropout", "word_dropout", "weight_dropout"])
def test_every_option_is_random_in_training_only(option):
    network, sample = make(**{option: 0.5}).train(), batch()
    assert not torch.equal(network(sample)[0]["logits"], network(sample)[0]["logits"])
    assert torch.equal(network.eval()(sample)[0]["logits"], make().eval()(sample)[0]["logits"])


def test_penalties():
    network = make(activation_penalty=2.0, change_penalty=3.0, dropout=0.5).train()
    sample = batch()
    torch.manual_seed(5)
    raw, dropped, _ = network._run(sample, None)
    torch.manual_seed(5)
    terms = network.loss_terms(network(sample)[0], sample)
    assert list(terms) == ["next_token_loss", "activation_penalty", "change_penalty"]
    torch.testing.assert_close(terms["activation_penalty"].value(), 2 * dropped.square().mean())
    torch.testing.assert_close(terms["change_penalty"].value(), 3 * (raw[:, 1:] - raw[:, :-1]).square().mean())
    short = {"input_ids": sample["input_ids"][:, :1], "targets": sample["targets"][:, :1]}
    assert network.loss_terms(network(short)[0], short)["change_penalty"].value() == 0
    assert list(network.eval().loss_terms(network(sample)[0], sample)) == ["next_token_loss"]


def test_loss_and_accuracy_by_hand():
    network = make().eval()
    sample = batch()
    sample["targets"] = sample["targets"].clone()
    sample["targets"][0, 3:] = -100
    outputs, _ = network(sample)
    log = outputs["logits"].log_softmax(-1)
    term = network.loss_terms(outputs, sample)["next_token_loss"]
    rows = enumerate(sample["targets"].tolist())
    expected = [-sum(log[b, t, k] for t, k in enumerate(row) if k >= 0) for b, row in rows]
    torch.testing.assert_close(term.numerator, torch.stack(expected))
    assert term.denominator.tolist() == [3, 5, 5]
    hits, counts = network.correct(outputs, sample)["next_token_accuracy"]
    best = outputs["logits"].argmax(-1)
    assert counts.tolist() == [3, 5, 5]
    assert hits.tolist() == (best == sample["targets"]).sum(1).tolist()


def test_it_learns_a_text_by_heart():
    network = make(embedding_size=16, cells=24)
    sample = batch(steps=12)
    optimizer = torch.optim.Adam(network.parameters(), 0.04)
    losses = []
    for _ in range(100):
        loss = network.loss_terms(network(sample)[0], sample)["next_token_loss"].value()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 2.0
    assert losses[-1] < 0.2


def test_generation_with_state_equals_reading_all_anew():
    network = make()
    prompts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    with_state = generate(network, prompts, max_new_tokens=9, temperature=0)
    anew = generate(network, prompts, max_new_tokens=9, temperature=0, use_cache=False)
    assert all(torch.equal(a, b) for a, b in zip(with_state, anew, strict=True))
    assert [len(row) for row in with_state] == [12, 10]


def test_scores_of_sequences():
    network = make().eval()
    rows = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6])]
    for row, found in zip(rows, score(network, rows), strict=True):
        log = network({"input_ids": row[None, :-1]})[0]["logits"][0].log_softmax(-1)
        torch.testing.assert_close(found.float(), log.gather(1, row[1:, None]).sum())
