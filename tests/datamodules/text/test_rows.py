"""Rows of BERT before masking: pairs of segments as in the authors' code, and full sentences."""

import numpy as np
import pytest

from datamodules.text import MaskedTextData
from datamodules.text.cache import FlatArray
from datamodules.text.rows import NEXT, RANDOM, Documents, Packed, Pairs, plan_packed, plan_pairs, truncated, write_plan
from errors import UserError
from tests.datamodules.text.builders import files


class Scripted:
    """A random stream that gives what the test says, in order."""

    def __init__(self, *draws):
        self.draws = list(draws)
        self.asked = []

    def random(self, size=None):
        return self.draws.pop(0) if size is None else np.array([self.draws.pop(0) for _ in range(size)])

    def integers(self, low, high):
        self.asked.append((low, high))
        return self.draws.pop(0)


def edges(*lengths):
    return np.cumsum([0, *lengths])


def plan(sentences, documents, rng, context=13, short_share=0.1):
    return list(plan_pairs(sentences, documents, context=context, short_share=short_share, rng=rng))


def test_next_pair_by_hand():
    # Room for 10 tokens: the sentences of 4, 4 and 3 tokens fill it; the first two become A.
    rng = Scripted(0.5, 2, 0.7)
    assert plan(edges(4, 4, 3), edges(3), rng) == [(0, 8, 8, 11, NEXT)]
    assert rng.asked == [(1, 3)] and not rng.draws


def test_random_pair_puts_back_what_it_did_not_use():
    # B is of the other document, from its second sentence to where the row is full. The sentences behind A are then
    # collected again, and the last pair of one sentence alone is random without a draw.
    sentences, documents = edges(4, 4, 3, 5, 5, 5), edges(3, 3)
    first = [0.5, 1, 0.3, 0, 1, 1]  # not short; A: 1 sentence; random; document 0 is the present one, hence again
    second = [1, 0.3, 1, 0]  # A: sentence 1; random; B from the first sentence of document 1
    third = [1, 2]  # sentence 2 is alone
    of_the_other = [0.5, 1, 0.9, 0, 0]  # sentences 3 and 4, next; sentence 5 alone, random
    rng = Scripted(*first, *second, *third, *of_the_other)
    assert plan(sentences, documents, rng) == [
        (0, 4, 16, 26, RANDOM),
        (4, 8, 11, 21, RANDOM),
        (8, 11, 21, 26, RANDOM),
        (11, 16, 16, 21, NEXT),
        (21, 26, 0, 8, RANDOM),
    ]
    assert not rng.draws


def test_short_pairs():
    rng = Scripted(0.05, 4, 1, 0.9, 1, 0.9)  # aim at 4 tokens, which two sentences fill
    assert plan(edges(2, 2, 2, 2), edges(4), rng) == [(0, 2, 2, 4, NEXT), (4, 6, 6, 8, NEXT)]
    assert rng.asked[0] == (2, 11)  # 2 to 10, the room of a row


def test_share_of_random_pairs_and_every_token_used():
    generator = np.random.default_rng(0)
    sentences = edges(*generator.integers(3, 30, 4000))
    documents = edges(*[40] * 100)
    rows = np.array(plan(sentences, documents, generator, context=128))
    # Half, and all pairs that begin with a document's last sentence, which random pairs make more frequent.
    assert 0.5 < (rows[:, 4] == RANDOM).mean() < 0.65
    used = np.zeros(sentences[-1], bool)
    for a, b, c, d, label in rows:
        used[a:b] = True
        if label == NEXT:
            assert b == c
            used[c:d] = True
    assert used.all()


def test_random_segments_are_of_other_documents():
    sentences, documents = edges(*[7] * 60), edges(20, 20, 20)
    firsts = sentences[documents]
    rows = plan(sentences, documents, np.random.default_rng(1), context=40)
    for a, _, c, _, label in rows:
        same = np.searchsorted(firsts, a, "right") == np.searchsorted(firsts, c, "right")
        assert same == (label == NEXT)


def test_truncation_by_hand():
    # 5 and 4 tokens to 6: the longer one loses first; equally long, the second.
    assert truncated((0, 5), (10, 14), 6, Scripted(0.4, 0.6, 0.4)) == ((2, 5), (10, 13))
    assert truncated((0, 5), (10, 14), 9, Scripted()) == ((0, 5), (10, 14))


def test_packed_by_hand():
    # Room for 8 tokens. The second document begins behind one more [SEP]; the sentence of 20 is cut.
    sentences, documents = edges(3, 4, 2, 20, 1), edges(1, 2, 2)
    assert list(plan_packed(sentences, documents, context=10, across=True)) == [
        (0, 7), (7, 9), (9, 17), (17, 25), (25, 30),
    ]  # fmt: skip
    assert list(plan_packed(sentences, documents, context=10, across=False)) == [
        (0, 3), (3, 9), (9, 17), (17, 25), (25, 30),
    ]  # fmt: skip


def text(folder, ids, sentences, documents):
    folder.mkdir(exist_ok=True)
    np.array(ids, np.uint8).tofile(folder / "ids.bin")
    np.array(sentences, np.int64).tofile(folder / "sentences.bin")
    np.array(documents, np.int64).tofile(folder / "documents.bin")
    arrays = (
        FlatArray(folder / "ids.bin", np.uint8),
        *(FlatArray(folder / f"{name}.bin", np.int64) for name in ("sentences", "documents")),
    )
    return Documents(*arrays)


def test_pairs_assembled(tmp_path):
    words = text(tmp_path, range(10, 20), edges(3, 2, 4, 1), edges(4))
    write_plan(tmp_path / "plan.bin", [(0, 5, 5, 10, NEXT)])
    rows = Pairs(words, FlatArray(tmp_path / "plan.bin", np.int64), context=12, cls=1, sep=2)
    row = rows.row(0, Scripted(0.9))  # one token too many: the second of equals loses its last
    assert row.ids.tolist() == [1, 10, 11, 12, 13, 14, 2, 15, 16, 17, 18, 2]
    assert row.token_types.tolist() == [0] * 7 + [1] * 5
    assert np.flatnonzero(row.special).tolist() == [0, 6, 11]
    assert np.flatnonzero(row.begins).tolist() == [1, 4, 7]
    assert (len(rows), row.label) == (1, NEXT)


def test_packed_assembled(tmp_path):
    words = text(tmp_path, range(10, 20), edges(3, 2, 4, 1), edges(2, 2))
    write_plan(tmp_path / "plan.bin", [(0, 9), (9, 10)])
    rows = Packed(words, FlatArray(tmp_path / "plan.bin", np.int64), cls=1, sep=2, repeat=3)
    row = rows.row(4, Scripted())
    assert row.ids.tolist() == [1, 10, 11, 12, 13, 14, 2, 15, 16, 17, 18, 2]
    assert not row.token_types.any()
    assert np.flatnonzero(row.special).tolist() == [0, 6, 11]
    assert np.flatnonzero(row.begins).tolist() == [1, 4, 7]
    assert (len(rows), row.label) == (6, None)
    assert rows.row(1, Scripted()).ids.tolist() == [1, 19, 2]


def test_every_token_of_a_corpus_is_packed_once(tmp_path):
    corpus = files(tmp_path, "one two three\nfour five\n\nsix\nseven eight nine ten eleven twelve thirteen\n" * 3)
    for rows in ("full_sentences", "doc_sentences"):
        data = MaskedTextData(corpus=corpus, tokenizer="words", context=7, rows=rows)
        made = data._dataset("train", training=True).rows
        read = [made.row(i, None) for i in range(len(made))]
        assert all(len(row.ids) <= 7 for row in read)
        tokens = np.concatenate([row.ids[~row.special] for row in read])
        assert (
            data.tokenizer.decode(tokens).split() == " ".join(s for d in corpus.documents("train") for s in d).split()
        )


def test_an_empty_corpus(tmp_path):
    data = MaskedTextData(corpus=files(tmp_path, "a b\nc d\n", val="\n\n"), tokenizer="words")
    with pytest.raises(UserError, match="the val split of text has no text"):
        data.val_dataloader()
