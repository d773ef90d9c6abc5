"""Tokenisers: from text to ids and back, with one small interface whatever the units are."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from datamodules.text.elmo_characters import word_characters
from errors import UserError

# What a special token is for, and how it is written.
SPECIALS = {"pad": "<pad>", "unk": "<unk>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>", "eos": "<eos>"}
WORD = re.compile(r"\w+|[^\w\s]")
Texts = Iterable[str]


class Tokenizer(ABC):
    """From text to ids and back.

    Attributes:
        kind: what the tokeniser is called in its state.
        tokens: the written form of every id.
        specials: role (`pad`, `unk`, `cls`, `sep`, `mask`, `eos`) -> id, of those that there are.
    """

    kind: str

    def __init__(self, tokens: Sequence[str], specials: dict[str, int]) -> None:
        self.tokens = list(tokens)
        self.specials = dict(specials)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @property
    def pad(self) -> int | None:
        """The id that fills up short rows; None if there is none, as with the other roles."""
        return self.specials.get("pad")

    @property
    def unk(self) -> int | None:
        """The id of what is not in the vocabulary."""
        return self.specials.get("unk")

    @property
    def cls(self) -> int | None:
        """The id before a text."""
        return self.specials.get("cls")

    @property
    def sep(self) -> int | None:
        """The id after a text."""
        return self.specials.get("sep")

    @property
    def mask(self) -> int | None:
        """The id that stands for a hidden token."""
        return self.specials.get("mask")

    @property
    def eos(self) -> int | None:
        """The id at the end of a line (words) or of a document (all others)."""
        return self.specials.get("eos")

    @property
    def continues(self) -> np.ndarray | None:
        """(vocab_size,) bool: the tokens that go on with the word of the token before; None where words are unknown."""
        return None

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int64, without any special token added.

        Raises:
            UserError: a character is unknown, and there is no `unk`.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are written as they are called."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All of it in JSON types; `from_state` makes the same tokeniser again."""


class Characters(Tokenizer):
    """A token is a Unicode character. Ids follow the code points, special tokens come first.

    Args:
        characters: those of the vocabulary.
        specials: roles of the special tokens.
    """

    kind = "characters"

    def __init__(self, characters: Iterable[str], specials: Sequence[str] = ()) -> None:
        self.characters = sorted(set(characters))
        names = [SPECIALS[role] for role in specials]
        super().__init__([*names, *self.characters], {role: i for i, role in enumerate(specials)})
        self.codes = np.array([ord(character) for character in self.characters], np.uint32)

    @classmethod
    def train(cls, texts: Texts, *, vocabulary: int | None, min_count: int, specials: Sequence[str]) -> "Characters":
        """The characters of `texts`; with a limit of either kind the rare ones become `unk`."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        if (vocabulary or min_count > 1) and "unk" not in specials:
            specials = ["unk", *specials]
        return cls(frequent(counts, vocabulary and vocabulary - len(specials), min_count), specials)

    @property
    def continues(self) -> np.ndarray:
        """(vocab_size,) bool: all but white space, with which a word begins."""
        begins = [token.isspace() for token in self.characters]
        return ~np.array([True] * len(self.specials) + begins)

    def encode(self, text: str) -> np.ndarray:
        """The ids of the characters."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.searchsorted(self.codes, codes).clip(max=max(len(self.codes) - 1, 0))
        ids = places + len(self.specials)
        foreign = self.codes[places] != codes if len(self.codes) else np.ones(len(codes), bool)
        if foreign.any():
            if self.unk is None:
                raise UserError(
                    f"the character {chr(codes[foreign][0])!r} does not occur in the training text; replace it, or "
                    "train with --data.min_count 2, which makes rare characters unknown ones"
                )
            ids[foreign] = self.unk
        return ids.astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The characters, joined."""
        return "".join(self.tokens[i] for i in ids)

    def state(self) -> dict[str, Any]:
        """Characters and roles."""
        return {"kind": self.kind, "characters": "".join(self.characters), "specials": list(self.specials)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Characters":
        """See `Tokenizer.state`."""
        return cls(state["characters"], state["specials"])


class Bytes(Tokenizer):
    """A token is a byte of the text in UTF-8; special tokens follow the 256 bytes.

    Args:
        specials: their roles.
    """

    kind = "bytes"

    def __init__(self, specials: Sequence[str] = ()) -> None:
        names = [SPECIALS[role] for role in specials]
        written = [chr(b) if 32 <= b < 127 else f"<0x{b:02x}>" for b in range(256)]
        super().__init__([*written, *names], {role: 256 + i for i, role in enumerate(specials)})

    @property
    def continues(self) -> np.ndarray:
        """(vocab_size,) bool: all but white space of ASCII, with which a word begins."""
        begins = [bytes([code]).isspace() for code in range(256)]
        return ~np.array(begins + [True] * len(self.specials))

    def encode(self, text: str) -> np.ndarray:
        """The bytes."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text; what is no UTF-8 becomes U+FFFD."""
        return b"".join(bytes([i]) if i < 256 else self.tokens[i].encode() for i in map(int, ids)).decode(
            errors="replace"
        )

    def state(self) -> dict[str, Any]:
        """The roles."""
        return {"kind": self.kind, "specials": list(self.specials)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Bytes":
        """See `Tokenizer.state`."""
        return cls(state["specials"])


class Words(Tokenizer):
    """A token is what stands between white space; with `eos`, one more ends each line.

    Args:
        words: the vocabulary without special tokens, the most frequent first.
        specials: role -> written form, `unk` among them; their ids come first.
        split_punctuation: also cut between letters and other marks.
        lowercase: whether to.
    """

    kind = "words"

    def __init__(
        self,
        words: Sequence[str],
        specials: dict[str, str],
        *,
        split_punctuation: bool = False,
        lowercase: bool = False,
    ) -> None:
        self.words = list(words)
        self.written = dict(specials)
        super().__init__([*specials.values(), *words], {role: i for i, role in enumerate(specials)})
        self.split_punctuation = split_punctuation
        self.lowercase = lowercase
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    @classmethod
    def train(
        cls,
        texts: Texts,
        *,
        vocabulary: int | None,
        min_count: int,
        specials: dict[str, str],
        split_punctuation: bool,
        lowercase: bool,
    ) -> "Words":
        """The most frequent words of `texts`, by count, then by code points."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_words(text, split_punctuation, lowercase))
        for written in specials.values():
            counts.pop(written, None)
        words = frequent(counts, vocabulary and vocabulary - len(specials), min_count)
        return cls(words, specials, split_punctuation=split_punctuation, lowercase=lowercase)

    @property
    def continues(self) -> np.ndarray:
        """(vocab_size,) bool: none."""
        return np.zeros(self.vocab_size, bool)

    def split(self, text: str) -> list[str]:
        """The words of a text, before they become ids."""
        return split_words(text, self.split_punctuation, self.lowercase)

    def characters(self, words: Sequence[str]) -> np.ndarray:
        """(N, 50) int64: how ELMo reads words, those outside the vocabulary included."""
        return word_characters(words)

    def encode(self, text: str) -> np.ndarray:
        r"""The ids of the words; every `\n` becomes `eos` if there is one."""
        unknown = self.specials["unk"]
        ids: list[int] = []
        for i, line in enumerate(text.split("\n") if self.eos is not None else [text]):
            if i:
                ids.append(self.specials["eos"])
            ids += [self.ids.get(word, unknown) for word in self.split(line)]
        return np.array(ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The words with blanks between them; `eos` ends a line."""
        lines: list[list[str]] = [[]]
        for i in map(int, ids):
            if i == self.eos:
                lines.append([])
            else:
                lines[-1].append(self.tokens[i])
        return "\n".join(" ".join(line) for line in lines)

    def state(self) -> dict[str, Any]:
        """Words, special tokens, and how texts are split."""
        return {
            "kind": self.kind,
            "words": self.words,
            "specials": self.written,
            "split_punctuation": self.split_punctuation,
            "lowercase": self.lowercase,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Words":
        """See `Tokenizer.state`."""
        return cls(
            state["words"],
            state["specials"],
            split_punctuation=state["split_punctuation"],
            lowercase=state["lowercase"],
        )


def split_words(text: str, punctuation: bool, lowercase: bool) -> list[str]:
    """Words between white space, or also cut where punctuation begins and ends."""
    text = text.lower() if lowercase else text
    return WORD.findall(text) if punctuation else text.split()


def frequent(counts: Counter[str], most: int | None, min_count: int) -> list[str]:
    """What occurs at least `min_count` times, the most frequent first, ties in the order of code points."""
    ordered = sorted((item for item in counts.items() if item[1] >= min_count), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in ordered[:most]]
