"""Sentences of words as two streams, one forward, one backward, that ELMo reads window by window.

A sentence of n words is n + 1 steps: forward reads <S> w1 .. wn and predicts w1 .. wn </S>; backward reads
</S> wn .. w1 and predicts wn .. w1 <S>. What follows a sentence's end is never predicted, but the state goes on.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loader import SampleKey
from datamodules.randomness import epoch_permutation
from datamodules.text.cache import Appender, FlatArray, token_type
from datamodules.text.elmo_characters import BOUNDARIES, SLOTS, word_characters
from datamodules.text.encoded import batched, read_about, write_about
from datamodules.text.tokenizers import Words
from datamodules.text.windows import IGNORE
from errors import UserError

BEGIN, END = 0, 1  # forms of <S> and </S>
FORMS_AT_ONCE = 4096


def write_sentences(folder: Path, documents: Iterable[list[str]], tokenizer: Words) -> None:
    """Encode sentences by the forms of their words: every different word of the text is a form of its own.

    Files: `ids.bin`, the forms of all words; `sentences.bin`, where sentences begin, and the number of words;
    `characters.bin`, 50 character ids per form; `words.bin`, the word of the vocabulary that each form is predicted as.
    Sentences without a word are left out.
    """
    forms: dict[str, int] = {}
    with (
        Appender(folder / "ids.bin", np.uint32) as ids,
        Appender(folder / "sentences.bin", np.int64) as starts,
    ):
        for document in documents:
            for sentence in document:
                words = tokenizer.split(sentence)
                if words:
                    starts.add([ids.length])
                    ids.add([forms.setdefault(word, len(forms) + 2) for word in words])
        starts.add([ids.length])
    with (
        Appender(folder / "characters.bin", np.uint16) as characters,
        Appender(folder / "words.bin", token_type(tokenizer.vocab_size)) as predicted,
    ):
        characters.add(BOUNDARIES.ravel())
        predicted.add([tokenizer.cls, tokenizer.eos])
        for some in batched(forms, FORMS_AT_ONCE):
            characters.add(word_characters(some).ravel())
            predicted.add([tokenizer.ids.get(word, tokenizer.unk) for word in some])
    write_about(folder, tokens=ids.length, sentences=starts.length - 1, forms=len(forms) + 2, dtype=predicted.dtype.str)


class EncodedSentences:
    """What `write_sentences` wrote, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        about = read_about(folder)
        self.tokens: int = about["tokens"]
        self.ids = FlatArray(folder / "ids.bin", np.uint32)
        self.starts = FlatArray(folder / "sentences.bin", np.int64)
        self.characters = FlatArray(folder / "characters.bin", np.uint16)
        self.words = FlatArray(folder / "words.bin", about["dtype"])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def steps(self) -> int:
        """Words and sentence ends, each predicted once in each direction."""
        return self.tokens + len(self)

    def forms_of(self, sentence: int) -> np.ndarray:
        """Its forms, with <S> and </S>."""
        inner = self.ids[self.starts[sentence] : self.starts[sentence + 1]]
        return np.concatenate([[BEGIN], inner.astype(np.int64), [END]])


class SentenceTracks(Dataset):
    """Sentences dealt to `tracks` rows that are read side by side, `context` steps at a time.

    Sample s * tracks + t is step s of track t; each goes on where the one before ended. A track begins with a sentence.
    Training takes the sentences in another order each epoch, drawn with `seed`, and the order of a whole corpus takes
    16 bytes a sentence in each process; the last sentences of a track may be read by the next one too or by none, so
    that all are of equal length. Evaluation scores every word exactly once.

    Args:
        sentences: the text.
        context: steps T of a sample.
        tracks: their number.
        training: see above.
        shuffle: whether training takes another order.
        seed: of the order.
    """

    def __init__(
        self,
        sentences: EncodedSentences,
        *,
        context: int,
        tracks: int,
        training: bool,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.sentences = sentences
        self.context = context
        self.tracks = tracks
        self.training = training
        self.shuffle = shuffle and training
        self.seed = seed
        self.order: _Order | None = None  # of the epoch asked for last
        if training:
            self.steps = sentences.steps // tracks // context
        else:
            ends = self._begins(self._order(0))
            self.steps = -(-int(np.diff(ends).max()) // context)
        if self.steps < 1:
            raise UserError(
                f"{sentences.tokens} words of text do not fill {tracks} tracks of data.context {context}; add text, or "
                "lower data.context, data.batch_size or the number of processes"
            )

    def __len__(self) -> int:
        return self.steps * self.tracks

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        step, track = divmod(index, self.tracks)
        order = self._order(epoch)
        begins = self._begins(order)
        start = int(begins[track]) + step * self.context
        stop = start + self.context if self.training else min(start + self.context, int(begins[track + 1]))
        width = max(stop - start, 0)
        row = np.zeros((2, self.context), np.int64)  # forms; where nothing is left, those of <S>
        targets = np.full((2, self.context), IGNORE, np.int64)
        for at, forms, a, b in order.pieces(start, width):
            for direction, stream in enumerate((forms, forms[::-1])):
                row[direction, at : at + b - a] = stream[a:b]
                targets[direction, at : at + b - a] = self.sentences.words[stream[a + 1 : b + 1]]
        return {
            "forms": row,
            "targets": targets,
            "characters": self.sentences.characters,
            "index": index,
            "fresh": step == 0,
        }

    def _order(self, epoch: int) -> "_Order":
        if self.order is None or self.order.epoch != (epoch if self.shuffle else 0):
            self.order = _Order(self.sentences, epoch if self.shuffle else 0, self.seed if self.shuffle else None)
        return self.order

    def _begins(self, order: "_Order") -> np.ndarray:
        """(tracks + 1,): where tracks begin, the first sentence behind their share of the whole; and the end."""
        shares = np.arange(self.tracks + 1) * self.sentences.steps // self.tracks
        return order.starts[np.searchsorted(order.starts, shares)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "order": None}


class _Order:
    """The sentences of an epoch in their order."""

    def __init__(self, sentences: EncodedSentences, epoch: int, seed: int | None) -> None:
        self.sentences = sentences
        self.epoch = epoch
        lengths = np.diff(sentences.starts.array) + 1
        self.permutation = None if seed is None else epoch_permutation(seed, epoch, len(sentences))
        if self.permutation is not None:
            lengths = lengths[self.permutation]
        self.starts = np.concatenate([[0], lengths.cumsum()])

    def pieces(self, start: int, width: int) -> Iterator[tuple[int, np.ndarray, int, int]]:
        """What `width` steps from `start` are made of, from the beginning again behind the end.

        Yields:
            Where a piece lies in the window, its sentence's forms, and the steps of the sentence from which to which.
        """
        at = 0
        while at < width:
            position = (start + at) % self.sentences.steps
            place = int(np.searchsorted(self.starts, position, "right")) - 1
            sentence = place if self.permutation is None else int(self.permutation[place])
            a = position - int(self.starts[place])
            b = min(a + width - at, int(self.starts[place + 1] - self.starts[place]))
            yield at, self.sentences.forms_of(sentence), a, b
            at += b - a


def collate_sentences(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Samples to a batch in which every different word has its characters once.

    Returns:
        `characters` (U, 50), `words` and `backward_words` (B, T), which of the U, `targets` and `backward_targets`
        (B, T), `index` (B,), all int64, and `fresh` (B,) bool.
    """
    forms, places = np.unique(np.stack([sample["forms"] for sample in samples], 1), return_inverse=True)
    targets = torch.from_numpy(np.stack([sample["targets"] for sample in samples], 1))
    words = torch.from_numpy(places.reshape(targets.shape))
    characters = samples[0]["characters"].array.reshape(-1, SLOTS)[forms].astype(np.int64)
    return {
        "characters": torch.from_numpy(characters),
        "words": words[0],
        "backward_words": words[1],
        "targets": targets[0],
        "backward_targets": targets[1],
        "index": torch.tensor([sample["index"] for sample in samples]),
        "fresh": torch.tensor([sample["fresh"] for sample in samples]),
    }
