"""Sentences and pairs of sentences with a label: what pretrained models are fine-tuned on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loader import ResumableLoader, SampleKey
from datamodules.text.base import LanguageDataModule
from datamodules.text.cache import Appender, FlatArray, digest_of, token_type
from datamodules.text.elmo_characters import BOUNDARIES, word_characters
from datamodules.text.encoded import SENTENCES_AT_ONCE, batched
from datamodules.text.labelled import LabelledFiles
from datamodules.text.masked import filled, padded
from datamodules.text.sample_lines import PythonLines
from datamodules.text.tokenizers import Tokenizer, Words
from errors import UserError


class ClassificationData(LanguageDataModule):
    r"""Labelled sentences or pairs.

    A text becomes `[CLS] text [SEP]`, a pair `[CLS] first [SEP] second [SEP]`; a tokeniser without those marks puts its
    `eos`, if it has one, behind each. What is longer than `context` loses tokens at the end, of a pair the longer text
    first, as in BERT's code.

    Batches: `input_ids`, `token_type_ids` (B, T) int64 and `attention_mask` (B, T) bool, padded to the longest row,
    `index` (B,) int64, `labels` (B,) int64, or float32 for regression. With `characters`, as ELMo reads them, words
    `character_ids` (B, T, 50) instead of the first two; between the texts of a pair stand `</S>` and `<S>`.

    For prediction, `texts` is a file with a text a line, the texts of a pair separated by a tab.

    Args:
        corpus: the tables; None is the sample, lines of documentation that are prose or code.
        tokenizer: see `LanguageDataModule`; that of the pretrained model, its checkpoint for instance. Of ELMo its
            words are used only to cut texts.
        context: the most tokens of a row.
        characters: whether to give words as characters.
        **common: see `LanguageDataModule`.
    """

    roles = ()

    def __init__(
        self,
        *,
        corpus: LabelledFiles | None = None,
        tokenizer: str = "wordpiece",
        context: int = 128,
        characters: bool = False,
        **common: Any,
    ) -> None:
        self.roles = ("pad", "unk", "cls", "sep", "mask") if tokenizer == "wordpiece" else ()
        super().__init__(corpus=corpus or PythonLines(), tokenizer=tokenizer, **common)
        if context < 5:
            raise UserError(f"data.context is {context}; [CLS] A [SEP] B [SEP] takes at least 5 tokens")
        self.context = context
        self.characters = characters

    @property
    def class_names(self) -> list[str]:
        """The classes in their order; empty for regression."""
        return self.corpus.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 1 is regression."""
        return len(self.class_names) or 1

    @property
    def fingerprint(self) -> str:
        """A hash over the tables, the tokeniser and the classes."""
        return digest_of([super().fingerprint, self.class_names])[:16]

    def description(self) -> dict[str, Any]:
        """See the base class."""
        return super().description() | {
            "task": "text_classification",
            "class_names": self.class_names,
            "context": self.context,
            "characters": self.characters,
        }

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Any]]:
        """Padded to the longest row."""
        return partial(collate_texts, pad=self.tokenizer.pad or 0)

    def predict_dataloader(self) -> ResumableLoader:
        """The lines of `texts` in order, without labels."""
        texts = [text.partition("\t")[::2] for text in self.predict_texts]
        dataset = TextRows(self._encoder().encode(texts), self._encoder())
        return self._loader(dataset, self._in_order(dataset))

    def _encoder(self) -> "RowEncoder":
        return RowEncoder(self.tokenizer, context=self.context, characters=self.characters)

    def _dataset(self, split: str, training: bool) -> Dataset:
        encoder = self._encoder()
        folder = self.cache.made(
            ["labelled", split, self._content(split), self.tokenizer.state(), self.class_names, self.characters],
            lambda new: write_labelled(new, self.corpus, split, encoder),
        )
        ids = FlatArray(folder / "ids.bin", encoder.dtype)
        starts, labels = FlatArray(folder / "starts.bin", np.int64), FlatArray(folder / "labels.bin", np.float64)
        if not len(labels):
            raise UserError(f"the {split} split of {self.name} has no rows; name files that have with --data.corpus")
        return TextRows((ids, starts), encoder, labels, regression=self.corpus.regression)


class RowEncoder:
    """From texts to what is kept of them, and from that to the rows of a batch.

    Kept are the ids of tokens, or, where words are given as characters, the bytes of the text.

    Args:
        tokenizer: for the ids; of words, where characters are given.
        context: the most tokens of a row.
        characters: whether to give words as characters.
    """

    def __init__(self, tokenizer: Tokenizer, *, context: int, characters: bool) -> None:
        if characters and not isinstance(tokenizer, Words):
            raise UserError("data.characters needs a tokeniser of words: take words or ELMo's checkpoint")
        self.tokenizer = tokenizer
        self.context = context
        self.characters = characters
        self.dtype = np.dtype(np.uint8) if characters else token_type(tokenizer.vocab_size)
        self.first = tokenizer.cls
        self.behind = tokenizer.sep if tokenizer.sep is not None and self.first is not None else tokenizer.eos

    def encode(self, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Texts end to end, and (2 N + 1) where the first and the second text of each row begin."""
        flat = [text for pair in pairs for text in pair]
        if self.characters:
            encoded = [np.frombuffer(text.encode(), np.uint8) for text in flat]
        else:
            encoded = self.tokenizer.encode_batch(flat)
        lengths = [len(one) for one in encoded]
        return np.concatenate([np.zeros(0, self.dtype), *encoded]), np.concatenate([[0], np.cumsum(lengths)])

    def row(self, first: np.ndarray, second: np.ndarray) -> dict[str, Tensor]:
        """A row of what was kept of its texts: `input_ids` and `token_type_ids` (T,), or `character_ids` (T, 50)."""
        if self.characters:
            return {"character_ids": torch.from_numpy(self._characters(first, second))}
        ids, types = [] if self.first is None else [[self.first]], []
        marks = (self.behind is not None) * (1 + (len(second) > 0)) + (self.first is not None)
        parts = shortened([first, second], self.context - marks)
        for number, part in enumerate(parts if len(second) else parts[:1]):
            ids += [part] if self.behind is None else [part, [self.behind]]
            length = sum(map(len, ids)) - len(types)
            types += [number] * length
        return {
            "input_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)),
            "token_type_ids": torch.tensor(types, dtype=torch.int64),
        }

    def _characters(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        texts = [self.tokenizer.split(part.tobytes().decode()) for part in (first, second)]
        parts = shortened(texts, self.context - 2 * bool(texts[1]))
        rows = [word_characters(parts[0])]
        if texts[1]:
            rows += [BOUNDARIES[::-1], word_characters(parts[1])]
        return np.concatenate(rows).astype(np.int64)


def shortened(parts: list[Any], most: int) -> list[Any]:
    """Two sequences cut at their ends to `most` items together, the longer one first."""
    a, b = map(len, parts)
    excess = max(a + b - most, 0)
    level = min(excess, abs(a - b))  # what only the longer one loses
    rest = excess - level
    cuts = [level + rest // 2, rest - rest // 2] if a > b else [rest // 2, level + rest - rest // 2]
    return [part[: len(part) - cut] for part, cut in zip(parts, cuts, strict=True)]


def write_labelled(folder: Path, corpus: LabelledFiles, split: str, encoder: RowEncoder) -> None:
    """Keep a split: `ids.bin`, where texts begin in it (`starts.bin`, two a row), and `labels.bin`.

    Raises:
        UserError: a text without a token, where no mark stands for it.
    """
    marked = encoder.behind is not None and not encoder.characters
    with (
        Appender(folder / "ids.bin", encoder.dtype) as ids,
        Appender(folder / "starts.bin", np.int64) as starts,
        Appender(folder / "labels.bin", np.float64) as labels,
    ):
        for examples in batched(corpus.examples(split), SENTENCES_AT_ONCE):
            for example, _ in examples:
                if not example.text.strip() and not marked:
                    raise UserError(f"{example.place}: the text is empty; leave the row out")
            encoded, begins = encoder.encode([(example.text, example.second) for example, _ in examples])
            starts.add(begins[:-1] + ids.length)
            ids.add(encoded)
            labels.add([label for _, label in examples])
        starts.add([ids.length])


class TextRows(Dataset):
    """Rows with their labels.

    Args:
        texts: ids end to end, and where texts begin, two a row.
        encoder: makes the rows.
        labels: numbers of classes, or what is to be predicted; None for texts without.
        regression: which of the two.
    """

    def __init__(
        self,
        texts: tuple[Any, Any],
        encoder: RowEncoder,
        labels: FlatArray | None = None,
        *,
        regression: bool = False,
    ) -> None:
        self.ids, self.starts = texts
        self.encoder = encoder
        self.labels = labels
        self.regression = regression

    def __len__(self) -> int:
        return len(self.starts) // 2

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index = key[1]
        a, b, c = (int(start) for start in self.starts[2 * index : 2 * index + 3])
        sample: dict[str, Any] = self.encoder.row(self.ids[a:b], self.ids[b:c])
        sample["index"] = index
        if self.labels is not None:
            label = float(self.labels[index])
            sample["labels"] = label if self.regression else int(label)
        return sample


def collate_texts(samples: list[dict[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """Fill rows up to the longest; see `ClassificationData`."""
    filling = {"input_ids": pad, "token_type_ids": 0, "character_ids": 0}
    batch = {name: padded([s[name] for s in samples], value) for name, value in filling.items() if name in samples[0]}
    batch["attention_mask"] = filled([len(next(iter(sample.values()))) for sample in samples])
    batch["index"] = torch.tensor([sample["index"] for sample in samples])
    if "labels" in samples[0]:
        batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
    return batch
