"""Making a tokeniser: trained on a corpus, or loaded from a file, a checkpoint or the hub."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from datamodules.text.reading import Source, lines
from datamodules.text.subwords import Subwords, from_hub, train_bpe, train_wordpiece, wordpiece_from_vocabulary
from datamodules.text.tokenizers import SPECIALS, Bytes, Characters, Tokenizer, Words
from errors import UserError

KINDS = {kind.kind: kind for kind in (Characters, Bytes, Words, Subwords)}
TRAINED = ("characters", "bytes", "words", "bpe", "wordpiece")
HUB = "hub:"


def from_state(state: dict[str, Any]) -> Tokenizer:
    """The tokeniser whose `state()` this is."""
    return KINDS[state["kind"]].from_state(state)


class TokenizerRecipe:
    """How a data module gets its tokeniser.

    Args:
        tokenizer: one to train (`characters`, `bytes`, `words`, `bpe`, `wordpiece`); or a file: of the `tokenizers`
            library (`.json`), BERT's `vocab.txt`, what `save` wrote, or a checkpoint of train.py (`.ckpt`); or
            `hub:NAME`.
        vocabulary: the most tokens that training makes; None is no limit (characters, words), 8000 (bpe, wordpiece).
        min_count: what occurs less often in training texts becomes unknown (characters, words), or is not merged.
        lowercase: lower letters, and, as BERT does, strip accents (words, wordpiece, vocab.txt). Not for Korean, whose
            syllables BERT would take apart.
        split_punctuation: cut words from punctuation marks (words).
        specials: roles of the special tokens that training makes.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        vocabulary: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
        split_punctuation: bool = False,
        specials: tuple[str, ...] = (),
    ) -> None:
        if vocabulary is not None and vocabulary < 1:
            raise UserError(f"data.vocabulary is {vocabulary}; it must be at least 1")
        if min_count < 1:
            raise UserError(f"data.min_count is {min_count}; it must be at least 1")
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.min_count = min_count
        self.lowercase = lowercase
        self.split_punctuation = split_punctuation
        self.specials = specials
        unused = {
            "vocabulary": vocabulary is not None and tokenizer not in ("characters", "words", "bpe", "wordpiece"),
            "min_count": min_count > 1 and tokenizer not in ("characters", "words", "bpe", "wordpiece"),
            "lowercase": lowercase and tokenizer not in ("words", "wordpiece") and not tokenizer.endswith(".txt"),
            "split_punctuation": split_punctuation and tokenizer != "words",
        }
        for option, idle in unused.items():
            if idle:
                raise UserError(f"data.{option} means nothing to data.tokenizer {tokenizer}; leave it out")

    @property
    def is_trained(self) -> bool:
        """Whether it needs training texts."""
        return self.tokenizer in TRAINED

    @property
    def options(self) -> dict[str, Any]:
        """All that decides, besides the texts, what training makes."""
        return {**self.__dict__, "specials": list(self.specials)}

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Train on texts.

        Args:
            texts: may be read more than once.

        Raises:
            UserError: the vocabulary would be too small for its alphabet.
        """
        sized = {"vocabulary": self.vocabulary, "min_count": self.min_count}
        makers: dict[str, Callable[[], Tokenizer]] = {
            "characters": lambda: Characters.train(texts, **sized, specials=self.specials),
            "bytes": lambda: Bytes(self.specials),
            "words": lambda: Words.train(
                texts,
                **sized,
                specials={role: SPECIALS[role] for role in dict.fromkeys(("unk", *self.specials, "eos"))},
                split_punctuation=self.split_punctuation,
                lowercase=self.lowercase,
            ),
            "bpe": lambda: train_bpe(texts, **sized | {"vocabulary": self.vocabulary or 8000}, specials=self.specials),
            "wordpiece": lambda: train_wordpiece(
                texts,
                **sized | {"vocabulary": self.vocabulary or 8000},
                specials=tuple(dict.fromkeys((*self.specials, "unk"))),
                lowercase=self.lowercase,
            ),
        }
        made = makers[self.tokenizer]()
        if self.vocabulary is not None and made.vocab_size > self.vocabulary:
            raise UserError(
                f"data.vocabulary is {self.vocabulary}, but special tokens and alphabet alone are {made.vocab_size}; "
                "allow more"
            )
        return made

    def load(self) -> Tokenizer:
        """Read a file, or fetch from the hub.

        Raises:
            UserError: there is no such file, or it holds no tokeniser.
        """
        if self.tokenizer.startswith(HUB):
            return from_hub(self.tokenizer.removeprefix(HUB))
        path = Path(self.tokenizer)
        if not path.is_file():
            raise UserError(
                f"data.tokenizer is {self.tokenizer!r}, neither one of {', '.join(TRAINED)} nor a file; name one of "
                f"them, or {HUB}NAME for the hub's"
            )
        if path.suffix == ".txt":
            return wordpiece_from_vocabulary(
                [line.rstrip("\r\n") for line in lines(Source(path))], lowercase=self.lowercase
            )
        try:
            if path.suffix == ".ckpt":
                state = torch.load(path, map_location="cpu", weights_only=True)["triptych"]["data"]["tokenizer"]
            else:
                state = json.loads("".join(lines(Source(path))))
            return from_state(state if "kind" in state else {"kind": "subwords", "engine": state})
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(
                f"{path}: holds no tokeniser; name a tokenizer.json, a vocab.txt or a checkpoint of a language model"
            ) from error


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokeniser as JSON."""
    path.write_text(json.dumps(tokenizer.state(), ensure_ascii=False), "utf-8")
