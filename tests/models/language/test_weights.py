"""Starting from weights: our own checkpoints, for the same network and for classifiers; what does not fit."""

import logging

import pytest
import torch
from torch import nn

from errors import UserError
from models.language.bert import BERT
from models.language.gpt import GPT
from models.language.weights import load_weights

TOKENIZER = {"kind": "bytes", "specials": []}
SMALL = {"layers": 1, "heads": 2, "hidden_size": 8}


class Classifier(nn.Module):
    """The smallest network that is built on a language model."""

    def __init__(self, classes=2):
        super().__init__()
        self.encoder = BERT(vocab_size=11, **SMALL)
        self.score = nn.Linear(8, classes)


def save(network, path, tokenizer=TOKENIZER):
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "triptych": {"data": {"tokenizer": tokenizer}}}, path)
    return path


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_own_checkpoints(tmp_path, caplog):
    first, second = GPT(vocab_size=11, **SMALL), GPT(vocab_size=11, **SMALL)
    assert not same(first, second)
    with caplog.at_level(logging.WARNING):
        load_weights(second, save(first, tmp_path / "own.ckpt"), TOKENIZER)
    assert same(first, second)
    assert not caplog.text


def test_another_tokeniser_is_refused(tmp_path):
    file = save(GPT(vocab_size=11, **SMALL), tmp_path / "own.ckpt")
    with pytest.raises(UserError, match=r"another tokeniser: take theirs by --data.tokenizer .*own.ckpt"):
        load_weights(GPT(vocab_size=11, **SMALL), file, TOKENIZER | {"specials": ["eos"]})


def test_a_language_model_starts_a_classifier(tmp_path, caplog):
    pretrained, classifier = BERT(vocab_size=11, **SMALL), Classifier()
    score = classifier.score.weight.clone()
    with caplog.at_level(logging.WARNING):
        load_weights(classifier, save(pretrained, tmp_path / "bert.ckpt"))
    assert same(pretrained, classifier.encoder)
    assert torch.equal(classifier.score.weight, score)
    assert "begin afresh: score.weight, score.bias" in caplog.text


def test_a_classifier_starts_one_of_other_classes_and_gives_its_encoder_back(tmp_path, caplog):
    trained, other, bert = Classifier(), Classifier(5), BERT(vocab_size=11, **SMALL)
    file = save(trained, tmp_path / "classifier.ckpt")
    with caplog.at_level(logging.WARNING):
        load_weights(other, file)
    assert same(trained.encoder, other.encoder)
    assert "begin afresh: score.weight, score.bias" in caplog.text
    with caplog.at_level(logging.WARNING):
        load_weights(bert, file)
    assert same(trained.encoder, bert)
    assert "are not used: head.score.weight" in caplog.text
    again = Classifier()
    load_weights(again, file)
    assert same(trained, again)


def test_what_does_not_fit_is_refused(tmp_path):
    gpt = save(GPT(vocab_size=11, **SMALL), tmp_path / "gpt.ckpt")
    with pytest.raises(UserError, match=r"do not fit this GPT \(tokens.weight is \(11, 8\) there and \(12, 8\) here"):
        load_weights(GPT(vocab_size=12, **SMALL), gpt)
    with pytest.raises(UserError, match="do not fit this BERT"):
        load_weights(BERT(vocab_size=11, **SMALL), gpt)
    with pytest.raises(UserError, match="do not fit this Classifier"):
        load_weights(Classifier(), gpt)
    with pytest.raises(UserError, match="has none of model"):
        load_weights(GPT(vocab_size=11, **SMALL), tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.bin")
    with pytest.raises(UserError, match="no name of theirs is known"):
        load_weights(GPT(vocab_size=11, **SMALL), tmp_path / "foreign.bin")
