"""Texts through models with their tokenisers: long texts, documents' ends, masked words, embeddings."""

import numpy as np
import pytest
import torch

from datamodules.text.subwords import train_bpe, wordpiece_from_vocabulary
from datamodules.text.tokenizers import Characters, Words
from errors import UserError
from models.language.bert import BERT
from models.language.gpt import GPT
from models.language.predictors import CausalPredictor, MaskedPredictor, PredictOptions, predictor_for

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "##s", "."]
SMALL = {"layers": 1, "heads": 2, "hidden_size": 16, "context_length": 12}


def gpt(vocab_size):
    torch.manual_seed(0)
    return GPT(vocab_size=vocab_size, **SMALL)


@pytest.fixture
def bert():
    torch.manual_seed(0)
    network = BERT(vocab_size=len(PIECES), **SMALL).eval()
    return predictor_for(network, wordpiece_from_vocabulary(PIECES, lowercase=True))


@pytest.fixture
def characters():
    return CausalPredictor(gpt(5), Characters("abcd "))


def answering(network, token):
    """Makes a network always answer with a token."""
    network.forward = lambda batch, state=None: (
        {"logits": torch.nn.functional.one_hot(torch.full_like(batch["input_ids"], token), network.vocab_size).float()},
        state,
    )


def test_a_text_ends_with_its_document():
    tokenizer = train_bpe(["a cat sat. " * 5], vocabulary=270, min_count=1, specials=("eos",))
    predictor = CausalPredictor(gpt(tokenizer.vocab_size), tokenizer)
    answering(predictor.network, tokenizer.eos)
    assert predictor.generate("a cat", temperature=0) == "a cat"
    answering(predictor.network, tokenizer.encode("t")[0])
    assert predictor.generate(["a cat", ""], temperature=0, max_new_tokens=3) == ["a catttt", "ttt"]


def test_the_end_of_a_line_does_not_end_a_text_of_words():
    tokenizer = Words(["a", "cat"], {"unk": "<unk>", "eos": "<eos>"})
    predictor = CausalPredictor(gpt(4), tokenizer)
    answering(predictor.network, 1)
    assert predictor.generate("a cat", temperature=0, max_new_tokens=2) == "a cat\n\n"
    score = predictor.score("a cat")
    assert score.tokens == 2  # the first word, too: a line begins where one ended


def test_long_texts_are_scored_and_embedded_whole(characters):
    text = "ab cd ba dc " * 4
    assert characters.score(text).tokens == len(text) - 1
    found = characters.embed([text, "ab"])
    assert "".join(found[0].tokens) == text
    assert found[0].vectors.shape == (len(text), 16) and found[1].vectors.shape == (2, 16)
    np.testing.assert_allclose(found[0].vectors[:2], found[1].vectors, atol=1e-5)
    assert len(characters.generate(text, max_new_tokens=5)) == len(text) + 5


def test_options_decide_what_is_predicted(characters):
    assert set(characters.predict(["ab"], PredictOptions(max_new_tokens=0, scores=False))[0]) == {"text"}
    everything = characters.predict(["ab", "cd a"], PredictOptions(max_new_tokens=4, embeddings=True))
    assert [len(row["generated"]) for row in everything] == [6, 8]
    assert set(everything[0]) == {
        "text", "generated", "log_likelihood", "tokens", "perplexity", "bits_per_character", "embedding"
    }  # fmt: skip
    again = characters.predict(["ab", "cd a"], PredictOptions(max_new_tokens=4, embeddings=True))
    assert [row["generated"] for row in again] == [row["generated"] for row in everything]


def test_masked_words_are_filled_in(bert):
    places = bert.fill("the [MASK] [MASK].", candidates=3)
    assert len(places) == 2 and all(len(place) == 3 for place in places)
    assert [share for _, share in places[0]] == sorted((share for _, share in places[0]), reverse=True)
    several = bert.fill(["the [MASK] [MASK].", "[MASK]"], candidates=2)
    assert [len(one) for one in several] == [2, 1]
    assert [word for word, _ in several[0][0]] == [word for word, _ in places[0][:2]]
    with pytest.raises(UserError, match=r"'the cat' has no \[MASK\]"):
        bert.fill("the cat")
    assert bert.put_in("a [MASK][MASK], [MASK]", ["cat", "##s", "dog"]) == "a cats, dog"


def test_prediction_of_masked_models(bert):
    first, second = bert.predict(["the [MASK] sat", "the dogs"], PredictOptions(candidates=2, embeddings=True))
    best = first["candidates"][0][0][0]
    assert first["filled"] in (f"the {best} sat", f"the{best[2:]} sat")
    assert "filled" not in second
    assert second["tokens"] == 3 and second["log_likelihood"] < 0
    assert second["embedding"].tokens == ["the", "dog", "##s"]
    assert second["embedding"].vectors.shape == (3, 16)
    assert second["log_likelihood"] == pytest.approx(bert.score("the dogs").log_likelihood)
    with pytest.raises(UserError, match="do not fit context_length 12"):
        bert.score("the cat " * 8)


def test_kinds_of_models():
    tokenizer = Characters("ab")
    assert isinstance(predictor_for(gpt(2), tokenizer), CausalPredictor)
    network = BERT(vocab_size=len(PIECES), **SMALL)
    assert isinstance(predictor_for(network, wordpiece_from_vocabulary(PIECES, lowercase=True)), MaskedPredictor)
