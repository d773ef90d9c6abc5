"""Masks of BERT: how many, which, and what stands in their place."""

import numpy as np
import pytest

from datamodules.text.masking import Masking, most_masked

MASK, VOCAB = 4, 1000


def masking(**changes):
    return Masking(**{"mask": MASK, "vocab_size": VOCAB, "share": 0.15, "most": 20} | changes)


def row(length):
    """Distinct tokens from 100; the first and the last are special."""
    ids = np.arange(100, 100 + length)
    special = np.zeros(length, bool)
    special[[0, -1]] = True
    return ids, special, np.zeros(length, bool)


@pytest.mark.parametrize(
    ("length", "number"), [(3, 1), (9, 1), (10, 2), (11, 2), (17, 3), (64, 10), (128, 19), (140, 20), (512, 20)]
)
def test_number_is_fixed_by_the_length(length, number):
    # round() as in the authors' code: 0.15 x 10 = 1.5 to 2; special tokens count.
    ids, special, begins = row(length)
    positions, labels = masking()(ids, special, begins, np.random.default_rng(0))
    assert len(positions) == len(labels) == number
    assert (np.diff(positions) > 0).all()
    assert labels.tolist() == (100 + positions).tolist()
    assert not special[positions].any()


def test_usual_limits():
    assert [most_masked(context, 0.15) for context in (128, 512)] == [20, 77]


def test_what_stands_in_their_place():
    rng = np.random.default_rng(0)
    counts = {"mask": 0, "same": 0, "other": 0}
    where, foreign = np.zeros(120), []
    for _ in range(1500):
        ids, special, begins = row(120)
        positions, labels = masking()(ids, special, begins, rng)
        where[positions] += 1
        new = ids[positions]
        counts["mask"] += (new == MASK).sum()
        counts["same"] += (new == labels).sum()
        other = new[(new != MASK) & (new != labels)]
        counts["other"] += len(other)
        foreign += other.tolist()
        untouched = np.setdiff1d(np.arange(120), positions)
        assert (ids[untouched] == 100 + untouched).all()
    total = sum(counts.values())
    assert total == 1500 * 18
    assert counts["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert counts["same"] / total == pytest.approx(0.1, abs=0.01)
    assert counts["other"] / total == pytest.approx(0.1, abs=0.01)
    # Random tokens are of the whole vocabulary, special ones included; positions are all alike.
    assert min(foreign) < 20 and max(foreign) > VOCAB - 20
    assert np.mean(foreign) == pytest.approx(VOCAB / 2, rel=0.05)
    assert where[[0, -1]].sum() == 0
    assert np.abs(where[1:-1] / 1500 - 18 / 118).max() < 0.04


def continues(*pieces):
    result = np.zeros(VOCAB, bool)
    result[list(pieces)] = True
    return result


def test_whole_words():
    # [CLS] un ##believ ##able . [SEP] so ##lid [SEP]: words of 3, 1 and 2 tokens.
    ids = np.array([1, 50, 51, 52, 60, 2, 70, 71, 2])
    special = np.isin(ids, [1, 2])
    words = [{1, 2, 3}, {4}, {6, 7}]
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        chosen = masking(share=0.35, continues=continues(51, 52, 71))(ids.copy(), special, np.zeros(9, bool), rng)[0]
        parts = [word for word in words if word & set(chosen.tolist())]
        assert set(chosen.tolist()) == set().union(*parts)
        assert len(chosen) == 3  # 0.35 x 9, rounded; a word that no longer fits is passed over
        seen.add(tuple(chosen.tolist()))
    assert seen == {(1, 2, 3), (4, 6, 7)}


def test_a_word_that_never_fits_is_not_masked():
    ids = np.array([1, 50, 51, 52, 2])
    positions, labels = masking(continues=continues(51, 52))(
        ids, np.isin(ids, [1, 2]), np.zeros(5, bool), np.random.default_rng(0)
    )
    assert len(positions) == len(labels) == 0
    assert ids.tolist() == [1, 50, 51, 52, 2]


def test_words_end_where_sentences_and_segments_do():
    # ##51 begins the second segment (its head was cut off), and 52, which goes on by its form, begins a sentence.
    ids = np.array([1, 50, 52, 2, 51, 60, 2])
    special = np.isin(ids, [1, 2])
    begins = np.zeros(7, bool)
    begins[2] = True
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        positions, _ = masking(most=1, continues=continues(51, 52))(ids.copy(), special, begins, rng)
        seen.add(tuple(positions.tolist()))
    assert seen == {(1,), (2,), (4,), (5,)}
