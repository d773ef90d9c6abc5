"""Documents as the rows that BERT is trained on: pairs of segments, or full sentences one after another.

Where the tokens of a row lie is planned once and kept on disk; a plan is a function of the text and the seed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.text.cache import Appender, FlatArray

RANDOM, NEXT = 1, 0  # labels of pairs, as in BERT's code
ROWS_AT_ONCE = 1 << 14
ATTEMPTS = 10  # to draw another document than the present one


class Documents(NamedTuple):
    """Encoded documents: where they lie in one long array of ids.

    Attributes:
        ids: all tokens.
        sentences: where sentences begin among the tokens, and the end of the last.
        documents: where documents begin among the sentences, and the end of the last.
    """

    ids: FlatArray
    sentences: FlatArray
    documents: FlatArray


class Row(NamedTuple):
    """A row before masking.

    Attributes:
        ids: (T,) int64, special tokens included.
        token_types: (T,) int64, 0 for the first segment, 1 for the second.
        special: (T,) bool, where the special tokens of the row are.
        begins: (T,) bool, where a sentence begins.
        label: `RANDOM` or `NEXT`; None for rows that are no pairs.
    """

    ids: np.ndarray
    token_types: np.ndarray
    special: np.ndarray
    begins: np.ndarray
    label: int | None


class Rows(Protocol):
    """Rows by index."""

    def __len__(self) -> int:
        """Number of rows."""

    def row(self, index: int, rng: np.random.Generator) -> Row:
        """A row; what is drawn in making it comes from `rng`."""


class Pairs:
    """`[CLS] A [SEP] B [SEP]`.

    Args:
        text: the encoded documents.
        plan: where the segments lie; see `plan_pairs`.
        context: the most tokens of a row.
        cls: id of [CLS].
        sep: id of [SEP].
    """

    WIDTH = 5  # begin and end of A, begin and end of B, label

    def __init__(self, text: Documents, plan: FlatArray, *, context: int, cls: int, sep: int) -> None:
        self.text = text
        self.plan = plan
        self.context = context
        self.cls = cls
        self.sep = sep

    def __len__(self) -> int:
        return len(self.plan) // self.WIDTH

    def row(self, index: int, rng: np.random.Generator) -> Row:
        """See `Rows`; a pair that is too long loses tokens at random ends of whichever segment is longer."""
        planned = self.plan[index * self.WIDTH : (index + 1) * self.WIDTH].tolist()
        a, b = truncated((planned[0], planned[1]), (planned[2], planned[3]), self.context - 3, rng)
        row = assembled(self.text, [a, b], self.cls, self.sep, planned[4])
        row.token_types[a[1] - a[0] + 2 :] = 1
        return row


class Packed:
    """`[CLS] sentences [SEP]`, with another [SEP] where a document ends within the row (RoBERTa's full sentences).

    Args:
        text: the encoded documents.
        plan: begin and end of the rows; see `plan_packed`.
        cls: id of [CLS].
        sep: id of [SEP].
        repeat: how often the same rows are dealt out, to be masked in as many ways.
    """

    WIDTH = 2

    def __init__(self, text: Documents, plan: FlatArray, *, cls: int, sep: int, repeat: int = 1) -> None:
        self.text = text
        self.plan = plan
        self.cls = cls
        self.sep = sep
        self.repeat = repeat

    def __len__(self) -> int:
        return len(self.plan) // self.WIDTH * self.repeat

    def row(self, index: int, rng: np.random.Generator) -> Row:
        """See `Rows`; nothing is drawn."""
        index %= len(self.plan) // self.WIDTH
        begin, end = self.plan[index * self.WIDTH : (index + 1) * self.WIDTH].tolist()
        sentences, documents = self.text.sentences.array, self.text.documents.array
        first, last = np.searchsorted(sentences, [begin, end], "right")  # sentences that begin within are first..last-1
        inner = np.searchsorted(documents, [first, last])
        cuts = [int(sentences[s]) for s in documents[slice(*inner)] if begin < sentences[s] < end]
        edges = [begin, *cuts, end]
        return assembled(self.text, list(pairwise(edges)), self.cls, self.sep, None)


def assembled(text: Documents, spans: list[tuple[int, int]], cls: int, sep: int, label: int | None) -> Row:
    """Spans of tokens with [CLS] before the first and [SEP] behind each."""
    length = 1 + sum(end - begin + 1 for begin, end in spans)
    ids = np.empty(length, np.int64)
    special = np.zeros(length, bool)
    begins = np.zeros(length, bool)
    ids[0] = cls
    special[0] = True
    place = 1
    for begin, end in spans:
        ids[place : place + end - begin] = text.ids[begin:end]
        starts = text.sentences.array
        first, last = np.searchsorted(starts, [begin, end])
        begins[place + starts[first:last] - begin] = True
        place += end - begin
        ids[place] = sep
        special[place] = True
        place += 1
    return Row(ids, np.zeros(length, np.int64), special, begins, label)


def truncated(
    a: tuple[int, int], b: tuple[int, int], most: int, rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two spans cut to `most` tokens together: token by token from the longer one, at its front or back by chance."""
    spans = [list(a), list(b)]
    excess = a[1] - a[0] + b[1] - b[0] - most
    for draw in rng.random(max(excess, 0)):
        longer = spans[0] if spans[0][1] - spans[0][0] > spans[1][1] - spans[1][0] else spans[1]
        if draw < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return (spans[0][0], spans[0][1]), (spans[1][0], spans[1][1])


def plan_pairs(
    sentences: np.ndarray, documents: np.ndarray, *, context: int, short_share: float, rng: np.random.Generator
) -> Iterator[tuple[int, int, int, int, int]]:
    """Cut every document into pairs of segments, as BERT's `create_pretraining_data.py` does.

    Sentences are collected until they fill a row. The first few of them, at random, are segment A. Segment B is the
    rest, or, half of the time and whenever there is no rest, as many sentences as fill the row from a random place of
    another document; the rest is then collected again. Random pairs therefore are more than half.

    Args:
        sentences: where sentences begin among the tokens, and the end of the last.
        documents: where documents begin among the sentences, and the end of the last.
        context: tokens of a row, at least 5.
        short_share: share of documents whose pairs aim at a random shorter length.
        rng: for all that is drawn.

    Yields:
        Begin and end of A, begin and end of B among the tokens, and the label. Pairs may be longer than a row.
    """
    count = len(documents) - 1
    for document in range(count):
        target = context - 3
        if rng.random() < short_share:
            target = int(rng.integers(2, context - 2))
        starts = _starts(sentences, documents, document)
        last = len(starts) - 2
        chunk = i = 0  # the sentences chunk..i are collected
        while i <= last:
            if i == last or starts[i + 1] - starts[chunk] >= target:
                cut = i + 1 if i == chunk else chunk + int(rng.integers(1, i - chunk + 1))
                if i == chunk or rng.random() < 0.5:
                    other = _starts(sentences, documents, _another(document, count, rng))
                    begin = int(rng.integers(0, len(other) - 1))
                    wanted = max(target - (starts[cut] - starts[chunk]), 1)
                    end = min(bisect_left(other, other[begin] + wanted), len(other) - 1)
                    yield starts[chunk], starts[cut], other[begin], other[end], RANDOM
                    i = cut - 1
                else:
                    yield starts[chunk], starts[cut], starts[cut], starts[i + 1], NEXT
                chunk = i + 1
            i += 1


def plan_packed(
    sentences: np.ndarray, documents: np.ndarray, *, context: int, across: bool
) -> Iterator[tuple[int, int]]:
    """Cut the text into rows of as many full sentences as fit; longer sentences are cut, so that no token is lost.

    Args:
        sentences: where sentences begin among the tokens, and the end of the last.
        documents: where documents begin among the sentences, and the end of the last.
        context: tokens of a row, [CLS], [SEP] and the [SEP] between documents included.
        across: whether a row goes on with the next document where one ends.

    Yields:
        Begin and end of a row among the tokens.
    """
    room = context - 2
    begin = used = position = 0  # where the row begins, the tokens and separators in it, and how far we are
    for document in range(len(documents) - 1):
        boundary = True
        for position, end in pairwise(_starts(sentences, documents, document)):
            separator = boundary and used > 0
            length = end - position
            if used and (used + separator + length > room or (separator and not across)):
                yield begin, position
                begin, used, separator = position, 0, False
            while length > room:
                yield begin, begin + room
                begin, length = begin + room, length - room
            used += separator + length
            boundary, position = False, end
    if used:
        yield begin, position


def write_plan(path: Path, rows: Iterable[tuple[int, ...]]) -> None:
    """Keep planned rows as a flat array of int64."""
    with Appender(path, np.int64) as plan:
        held: list[int] = []
        for row in rows:
            held += row
            if len(held) >= ROWS_AT_ONCE:
                plan.add(held)
                held = []
        plan.add(held)


def _starts(sentences: np.ndarray, documents: np.ndarray, document: int) -> list[int]:
    """Where the sentences of a document begin, and the end of the last; only these are read."""
    return sentences[int(documents[document]) : int(documents[document + 1]) + 1].tolist()


def _another(document: int, count: int, rng: np.random.Generator) -> int:
    for _ in range(ATTEMPTS):
        other = int(rng.integers(0, count))
        if other != document:
            break
    return other
