"""GPT: published sizes, initialisation, causality, padding, cache and loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from errors import UserError
from models.language.gpt import GPT
from models.language.language_model import IGNORE

VOCAB = 50


def small(**changes):
    torch.manual_seed(0)
    arguments = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "hidden_size": 16, "context_length": 200} | changes
    network = GPT(**arguments)
    for parameter in network.parameters():  # biases and scales off 0 and 1, so that a mix-up would show
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    return network.eval()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_parameter_counts(size, parameters):
    with torch.device("meta"):
        network = GPT(vocab_size=50257, size=size)
        other = GPT(vocab_size=50257, size=size, layers=1)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.published["parameters"] == parameters
    assert other.published == {}


def test_initialisation():
    torch.manual_seed(0)
    network = GPT(vocab_size=400, layers=8, heads=2, hidden_size=64)
    for block in network.blocks:
        for layer in (block.attention.out, block.outer):
            assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        for layer in (block.attention.qkv, block.inner):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not layer.bias.any()
        assert (block.mlp_norm.weight == 1).all()
    assert network.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.positions.weight.std().item() == pytest.approx(0.02, rel=0.05)
    ids = torch.randint(400, (4, 32))
    outputs, _ = network.eval()({"input_ids": ids})
    loss = network.loss_terms(outputs, {"targets": ids.roll(-1)})["next_token_loss"].value()
    assert loss.item() == pytest.approx(math.log(400), abs=0.05)


def test_a_token_sees_nothing_to_its_right():
    network = small()
    ids = torch.randint(VOCAB, (2, 20))
    before = network({"input_ids": ids})[0]["logits"]
    ids[:, 12:] = (ids[:, 12:] + 1) % VOCAB
    after = network({"input_ids": ids})[0]["logits"]
    torch.testing.assert_close(after[:, :12], before[:, :12])
    assert not torch.isclose(after[:, 12:], before[:, 12:]).all(-1).any()


def test_padding_changes_nothing():
    network = small()
    ids = torch.randint(VOCAB, (3, 20))
    lengths = torch.tensor([20, 7, 13])
    mask = torch.arange(20) < lengths[:, None]
    outputs, _ = network({"input_ids": ids, "attention_mask": mask})
    hidden = network.encode({"input_ids": ids, "attention_mask": mask})
    for row, length in enumerate(lengths):
        alone, _ = network({"input_ids": ids[row : row + 1, :length]})
        torch.testing.assert_close(outputs["logits"][row, :length], alone["logits"][0])
        assert not hidden[row, length:].any()


@pytest.mark.parametrize("cuts", [(1,) * 20, (7, 1, 12), (0, 20), (66, 70, 64)])
@torch.no_grad()
def test_reading_in_pieces_equals_reading_at_once(cuts):
    network = small()
    ids = torch.randint(VOCAB, (3, sum(cuts)))
    whole, state = network({"input_ids": ids})
    assert state is None
    state = network.initial_state()
    pieces = []
    for piece in ids.split([cut for cut in cuts if cut], 1):
        outputs, state = network({"input_ids": piece}, state)
        pieces.append(outputs["logits"])
    assert len(state) == sum(cuts)
    torch.testing.assert_close(torch.cat(pieces, 1), whole["logits"])


@torch.no_grad()
def test_too_many_tokens_are_refused():
    network = small(context_length=8)
    with pytest.raises(UserError, match="rows of 9 tokens"):
        network({"input_ids": torch.zeros(1, 9, dtype=torch.long)})
    _, state = network({"input_ids": torch.zeros(1, 8, dtype=torch.long)}, network.initial_state())
    with pytest.raises(UserError, match="context_length 8"):
        network({"input_ids": torch.zeros(1, 1, dtype=torch.long)}, state)


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="heads 3"):
        GPT(vocab_size=5, layers=1, heads=3, hidden_size=16)
    with pytest.raises(UserError, match="no GPT of size 'gpt3'"):
        GPT(vocab_size=5, size="gpt3")
    with pytest.raises(UserError, match="'relu'"):
        GPT(vocab_size=5, layers=1, heads=2, hidden_size=16, gelu="relu")


def test_loss_and_accuracy_count_by_hand():
    network = small()
    batch = {"input_ids": torch.randint(VOCAB, (2, 6)), "targets": torch.randint(VOCAB, (2, 6))}
    batch["targets"][0, 2:] = IGNORE
    outputs, _ = network(batch)
    batch["targets"][0, 0] = outputs["logits"][0, 0].argmax()
    batch["targets"][0, 1] = outputs["logits"][0, 1].argmin()
    term = network.loss_terms(outputs, batch)["next_token_loss"]
    log_p = outputs["logits"].log_softmax(-1)
    expected = [-sum(log_p[row, t, batch["targets"][row, t]] for t in range(n)) for row, n in ((0, 2), (1, 6))]
    torch.testing.assert_close(term.numerator, torch.stack(expected))
    assert term.denominator.tolist() == [2, 6]
    flat = F.cross_entropy(outputs["logits"].flatten(0, 1), batch["targets"].flatten())
    torch.testing.assert_close(term.value(), flat)
    hits, counts = network.correct(outputs, batch)["next_token_accuracy"]
    assert hits[0] == 1
    assert counts.tolist() == [2, 6]


def test_dropout_works_in_training_only():
    network = small(dropout=0.5, attention_dropout=0.5)
    batch = {"input_ids": torch.randint(VOCAB, (2, 6))}
    first = network(batch)[0]["logits"]
    torch.testing.assert_close(network(batch)[0]["logits"], first, rtol=0, atol=0)
    network.train()
    assert not torch.isclose(network(batch)[0]["logits"], network(batch)[0]["logits"]).all(-1).any()
    attention_only = small(dropout=0.0, attention_dropout=0.5).train()
    assert (
        not torch.isclose(attention_only(batch)[0]["logits"], attention_only(batch)[0]["logits"])[:, 1:].all(-1).any()
    )
