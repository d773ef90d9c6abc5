"""Which tokens BERT has to guess, and what stands in their place."""

import math

import numpy as np


class Masking:
    """Choose a fixed number of tokens per row and hide them, as BERT's `create_pretraining_data.py` does.

    The number is `share` of the row's tokens, special ones included, rounded, at least 1 and at most `most`. Of the
    chosen tokens 80 % become [MASK], 10 % a random token of the whole vocabulary, 10 % stay; each is drawn by itself.

    Args:
        mask: id of [MASK].
        vocab_size: random tokens are below.
        share: of the tokens.
        most: of a row.
        continues: (vocab_size,) bool, tokens that go on with the word of the token before: whole words are chosen
            then, and a word that does not fit into what is left of the number is passed over. None: single tokens.
    """

    def __init__(
        self, *, mask: int, vocab_size: int, share: float, most: int, continues: np.ndarray | None = None
    ) -> None:
        self.mask = mask
        self.vocab_size = vocab_size
        self.share = share
        self.most = most
        self.continues = continues

    def number(self, length: int) -> int:
        """How many tokens of a row of `length` tokens are chosen, at most."""
        return min(self.most, max(1, round(length * self.share)))

    def __call__(
        self, ids: np.ndarray, special: np.ndarray, begins: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose and hide.

        Args:
            ids: (T,) int64, changed in place.
            special: (T,) bool, tokens that are never chosen.
            begins: (T,) bool, where a word begins even if its token says otherwise.
            rng: for all that is drawn.

        Returns:
            The chosen positions (P,), ascending, and what stood there (P,).
        """
        positions = self._choose(ids, special, begins, rng)
        labels = ids[positions]
        draw = rng.random(len(positions))
        hidden = np.where(draw < 0.9, rng.integers(0, self.vocab_size, len(positions)), labels)
        ids[positions] = np.where(draw < 0.8, self.mask, hidden)
        return positions, labels

    def _choose(self, ids: np.ndarray, special: np.ndarray, begins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        candidates = np.flatnonzero(~special)
        number = self.number(len(ids))
        if self.continues is None:
            return np.sort(rng.permutation(candidates)[:number])
        # A word cannot go on over a special token; BERT's code would join the pieces around it.
        first = begins | ~self.continues[ids]
        first[1:] |= special[:-1]
        starts = np.flatnonzero(first[candidates])
        words = np.split(candidates, starts[1:])
        chosen: list[int] = []
        for i in rng.permutation(len(words)):
            if len(chosen) + len(words[i]) <= number:
                chosen += words[i].tolist()
            if len(chosen) == number:
                break
        return np.sort(np.array(chosen, np.int64))


def most_masked(context: int, share: float) -> int:
    """The usual limit per row: 20 for 128 tokens, 77 for 512."""
    return math.ceil(context * share)
