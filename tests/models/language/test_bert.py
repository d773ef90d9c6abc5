"""BERT: published sizes, initialisation, padding, masked positions, losses and accuracies."""

import math

import pytest
import torch

from errors import UserError
from models.language.bert import BERT
from models.language.language_model import IGNORE
from models.language.transformer import RaggedRows

VOCAB = 60


def small(**changes):
    torch.manual_seed(0)
    arguments = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "hidden_size": 16, "context_length": 32} | changes
    network = BERT(**arguments)
    for parameter in network.parameters():  # biases and scales off 0 and 1, so that a mix-up would show
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return network.eval()


def sample_batch(lengths=(20, 7, 13)):
    generator = torch.Generator().manual_seed(1)
    rows, length = len(lengths), max(lengths)
    labels = torch.randint(VOCAB, (rows, 4), generator=generator)
    labels[1, 2:] = IGNORE
    return {
        "input_ids": torch.randint(VOCAB, (rows, length), generator=generator),
        "token_type_ids": (torch.arange(length) > 4).long().expand(rows, -1).contiguous(),
        "attention_mask": torch.arange(length) < torch.tensor(lengths)[:, None],
        "masked_positions": torch.randint(min(lengths), (rows, 4), generator=generator),
        "masked_labels": labels,
        "next_sentence_label": torch.arange(rows) % 2,
    }


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("size", "encoder", "both_heads", "masked_only"),
    [
        ("tiny", 4_385_920, None, None),
        ("mini", 11_170_560, None, None),
        ("small", 28_763_648, None, None),
        ("medium", 41_373_184, None, None),
        ("base", 109_482_240, 110_106_428, 109_514_298),
        ("large", 335_141_888, 336_226_108, 335_174_458),
    ],
)
def test_published_parameter_counts(size, encoder, both_heads, masked_only):
    with torch.device("meta"):
        network = BERT(vocab_size=30522, size=size)
        without_pairs = BERT(vocab_size=30522, size=size, next_sentence=False)
    assert count(network) - sum(parameter.numel() for parameter in network.head_parameters()) == encoder
    assert network.published == ({"parameters": both_heads} if both_heads else {})
    if both_heads:
        assert count(network) == both_heads
        assert count(without_pairs) == masked_only


def test_initialisation():
    torch.manual_seed(0)
    network = BERT(vocab_size=400, layers=2, heads=2, hidden_size=64)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            assert parameter.abs().max() <= 0.04, name
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.0176, rel=0.05), name
        else:
            assert (parameter == float("norm.weight" in name)).all(), name


def test_fresh_losses_are_those_of_guessing():
    torch.manual_seed(0)
    network = BERT(vocab_size=400, layers=2, heads=2, hidden_size=64).eval()
    ids = torch.randint(400, (6, 30))
    batch = {
        "input_ids": ids,
        "masked_positions": torch.arange(10).expand(6, -1),
        "masked_labels": torch.randint(400, (6, 10)),
        "next_sentence_label": torch.arange(6) % 2,
    }
    terms = network.loss_terms(network(batch)[0], batch)
    assert terms["masked_loss"].value().item() == pytest.approx(math.log(400), abs=0.1)
    assert terms["next_sentence_loss"].value().item() == pytest.approx(math.log(2), abs=0.05)


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_padding_changes_nothing(side):
    network = small()
    network.positions.weight.data.zero_()  # the columns of the tokens differ
    ids = torch.randint(VOCAB, (1, 9))
    before, after = {"right": (0, 5), "left": (5, 0), "both": (2, 3)}[side]
    padded = torch.nn.functional.pad(ids, (before, after), value=7)
    mask = torch.nn.functional.pad(torch.ones(1, 9).bool(), (before, after))
    whole = {"input_ids": torch.cat([padded, torch.randint(VOCAB, padded.shape)])}
    whole["attention_mask"] = torch.cat([mask, torch.ones_like(mask)])
    hidden = network.encode(whole)[0]
    torch.testing.assert_close(hidden[mask[0]], network.encode({"input_ids": ids})[0])
    assert not hidden[~mask[0]].any()


def test_heads_find_their_tokens_among_the_unpadded_ones():
    network = small()
    batch = sample_batch()
    outputs, state = network(batch)
    assert state is None
    expected = []
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        for key in ("input_ids", "token_type_ids", "attention_mask"):
            alone[key] = alone[key][:, :length]
        expected.append(network(alone)[0])
    for key in ("masked_logits", "next_sentence_logits"):
        torch.testing.assert_close(outputs[key], torch.cat([row[key] for row in expected]))
    assert len(outputs["masked_logits"]) == 10


def test_without_labels_all_masked_positions_are_scored():
    network = small()
    batch = sample_batch()
    labelled, _ = network(batch)
    counted = batch.pop("masked_labels") != IGNORE
    every = network(batch)[0]["masked_logits"]
    assert len(every) == 12
    torch.testing.assert_close(every[counted.flatten()], labelled["masked_logits"])


@pytest.mark.parametrize("causal", [False, True])
def test_attending_by_row_and_padded_agree(causal):
    torch.manual_seed(0)
    mask = torch.rand(4, 9) < 0.6
    mask[1] = True
    mask[2] = torch.arange(9) == 3  # a row of one token
    rows = RaggedRows(mask, causal=causal)
    qkv = torch.randn(int(mask.sum()), 3, 2, 8, requires_grad=True)
    weight = torch.randn(len(qkv), 2, 8)
    results = []
    for attend in (rows.attend_by_row, rows.attend_padded):
        mixed = attend(qkv, 0.0)
        (gradient,) = torch.autograd.grad((mixed * weight).sum(), qkv)
        results.append((mixed, gradient))
    torch.testing.assert_close(*results)


def test_loss_and_accuracy_by_hand():
    network = small()
    batch = sample_batch()
    outputs, _ = network(batch)
    best = outputs["masked_logits"].argmax(-1)
    batch["masked_labels"][0, 0] = best[0]
    batch["masked_labels"][0, 1] = (best[1] + 1) % VOCAB
    batch["masked_labels"][1, :2] = best[4:6]
    batch["masked_labels"][2] = (best[6:] + 1) % VOCAB
    batch["masked_labels"][0, 2:] = (best[2:4] + 1) % VOCAB
    batch["next_sentence_label"] = outputs["next_sentence_logits"].argmax(-1)
    batch["next_sentence_label"][1] = 1 - batch["next_sentence_label"][1]
    terms = network.loss_terms(outputs, batch)
    log_p = outputs["masked_logits"].log_softmax(-1)
    labels = batch["masked_labels"]
    nll = [-log_p[i, label] for i, label in enumerate(labels[labels != IGNORE])]
    sums = torch.stack([sum(nll[:4]), sum(nll[4:6]), sum(nll[6:])])
    torch.testing.assert_close(terms["masked_loss"].numerator, sums)
    assert terms["masked_loss"].denominator.tolist() == [4, 2, 4]
    torch.testing.assert_close(terms["masked_loss"].value(), sum(nll) / (10 + 1e-5))
    pairs = -outputs["next_sentence_logits"].log_softmax(-1)[range(3), batch["next_sentence_label"]]
    torch.testing.assert_close(terms["next_sentence_loss"].value(), pairs.mean())
    results = {name: [part.tolist() for part in parts] for name, parts in network.correct(outputs, batch).items()}
    assert results == {"masked_accuracy": [[1, 2, 0], [4, 2, 4]], "next_sentence_accuracy": [[1, 0, 1], [1, 1, 1]]}


def test_a_batch_without_masked_tokens_has_no_loss_but_a_gradient():
    network = small().train()
    batch = sample_batch()
    batch["masked_labels"].fill_(IGNORE)
    terms = network.loss_terms(network(batch)[0], batch)
    assert terms["masked_loss"].value() == 0
    sum(term.value() for term in terms.values()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_without_pairs():
    network = small(next_sentence=False)
    batch = sample_batch()
    outputs, _ = network(batch)
    assert set(outputs) == {"masked_logits"}
    assert set(network.loss_terms(outputs, batch)) == {"masked_loss"}
    assert set(network.correct(outputs, batch)) == {"masked_accuracy"}
    network = small()
    del batch["next_sentence_label"]
    assert set(network.loss_terms(network(batch)[0], batch)) == {"masked_loss"}


def test_too_long_rows_are_refused():
    with pytest.raises(UserError, match="context_length 32"):
        small().encode({"input_ids": torch.zeros(1, 33, dtype=torch.long)})


def test_sizes_by_name_and_one_by_one():
    with torch.device("meta"):
        network = BERT(vocab_size=VOCAB, size="mini", layers=3)
    assert (len(network.blocks), network.blocks[0].attention.heads, network.hidden_size) == (3, 4, 256)
    with pytest.raises(UserError, match="no BERT of size 'huge': choose one of tiny, mini"):
        BERT(vocab_size=VOCAB, size="huge")
