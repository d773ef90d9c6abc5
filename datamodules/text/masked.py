"""Text for models that guess masked words: BERT's pretraining."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loader import SampleKey
from datamodules.randomness import sample_rng
from datamodules.text.base import LanguageDataModule
from datamodules.text.cache import FlatArray
from datamodules.text.encoded import read_ids, write_documents
from datamodules.text.masking import Masking, most_masked
from datamodules.text.rows import Documents, Packed, Pairs, Rows, plan_packed, plan_pairs, write_plan
from errors import UserError

IGNORE = -100  # a label that does not count
EVALUATION_SEED = 0  # so that all runs are measured by the same pairs and masks


class MaskedTextData(LanguageDataModule):
    """Rows of sentences with masked tokens, and, as pairs, with the question whether B follows A.

    Batches: `input_ids`, `token_type_ids` (B, T) int64 and `attention_mask` (B, T) bool, padded to the longest row;
    `masked_positions`, `masked_labels` (B, P) int64, filled up with 0 and -100 (does not count); `index` (B,); of
    pairs also `next_sentence_label` (B,): 1 is random, 0 is next, as in BERT's code.

    Pairs, lengths and masks are functions of seed, epoch and index. Evaluation has one pass over the text, whose pairs
    and masks are the same for every run.

    Args:
        context: the most tokens of a row, special ones included.
        rows: `pairs` of segments with the next-sentence question (BERT); `full_sentences`, as many as fit, going on
            from document to document, or `doc_sentences`, which end with a document (RoBERTa, section 4.2).
        passes: how often an epoch goes through the text; each pass cuts other pairs (BERT's `dupe_factor` is 10).
        masks: `dynamic` ones are drawn anew every epoch; `static` ones, as in BERT's code, belong to the row.
        masked_share: of a row's tokens.
        max_masked: the most masked tokens of a row; None is the share of a full row: 20 of 128, 77 of 512.
        whole_words: choose words rather than tokens.
        short_share: share of documents cut into pairs that are shorter than `context` (pairs only).
        **common: see `LanguageDataModule`.
    """

    roles = ("pad", "unk", "cls", "sep", "mask")

    def __init__(
        self,
        *,
        context: int = 128,
        rows: Literal["pairs", "full_sentences", "doc_sentences"] = "pairs",
        passes: int = 1,
        masks: Literal["dynamic", "static"] = "dynamic",
        masked_share: float = 0.15,
        max_masked: int | None = None,
        whole_words: bool = False,
        short_share: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.check_positive(passes=passes, max_masked=max_masked)
        if context < 5:
            raise UserError(f"data.context is {context}; [CLS] A [SEP] B [SEP] takes at least 5 tokens")
        for option, share in (("masked_share", masked_share), ("short_share", short_share)):
            if not 0 <= share <= 1:
                raise UserError(f"data.{option} is {share}; it must be a share, from 0 to 1")
        self.context = context
        self.rows = rows
        self.passes = passes
        self.masks = masks
        self.masked_share = masked_share
        self.max_masked = max_masked or max(most_masked(context, masked_share), 1)
        self.whole_words = whole_words
        self.short_share = short_share

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Any]]:
        """Padded to the longest row."""
        return partial(collate_masked, pad=self.tokenizer.specials["pad"])

    def documents(self, split: str) -> Documents:
        """The encoded documents of a split."""
        self.check_split(split)
        folder = self.cache.made(
            ["documents", self._content(split), self.tokenizer.state()],
            lambda new: write_documents(new, self.corpus.documents(split), self.tokenizer),
        )
        text = Documents(
            read_ids(folder), *(FlatArray(folder / f"{name}.bin", np.int64) for name in ("sentences", "documents"))
        )
        if not len(text.ids):
            raise UserError(f"the {split} split of {self.name} has no text; name files that have with --data.corpus")
        return text

    def _dataset(self, split: str, training: bool) -> Dataset:
        tokenizer = self.tokenizer
        continues = tokenizer.continues if self.whole_words else None
        if self.whole_words and continues is None:
            raise UserError(
                f"data.whole_words: the tokeniser {self.recipe.tokenizer} does not say where words begin; use "
                "wordpiece, bpe or words, or leave it out"
            )
        masking = Masking(
            mask=tokenizer.specials["mask"],
            vocab_size=tokenizer.vocab_size,
            share=self.masked_share,
            most=self.max_masked,
            continues=continues,
        )
        seed = self.seed if training else EVALUATION_SEED
        rows = self._rows(split, self.passes if training else 1, seed)
        return MaskedRows(rows, masking, seed=seed, dynamic=training and self.masks == "dynamic")

    def _rows(self, split: str, passes: int, seed: int) -> Rows:
        text = self.documents(split)
        marks = {"cls": self.tokenizer.specials["cls"], "sep": self.tokenizer.specials["sep"]}
        place = text.sentences.array, text.documents.array
        content = [self._content(split), self.tokenizer.state(), self.context]
        if self.rows == "pairs":

            def make(folder: Path) -> None:
                # One stream for a pass, apart from those of samples and of the order.
                streams = [np.random.SeedSequence((seed, number), spawn_key=(2,)) for number in range(passes)]
                made = (
                    row
                    for stream in streams
                    for row in plan_pairs(
                        *place,
                        context=self.context,
                        short_share=self.short_share,
                        rng=np.random.Generator(np.random.Philox(stream)),
                    )
                )
                write_plan(folder / "plan.bin", made)

            folder = self.cache.made(["pairs", *content, passes, self.short_share, seed], make)
            return Pairs(text, FlatArray(folder / "plan.bin", np.int64), context=self.context, **marks)
        across = self.rows == "full_sentences"
        folder = self.cache.made(
            ["packed", *content, across],
            lambda new: write_plan(new / "plan.bin", plan_packed(*place, context=self.context, across=across)),
        )
        return Packed(text, FlatArray(folder / "plan.bin", np.int64), repeat=passes, **marks)


class MaskedRows(Dataset):
    """Rows with masks.

    Args:
        rows: before masking.
        masking: how.
        seed: of what is drawn.
        dynamic: whether masks (and the ends that a too long pair loses) differ from epoch to epoch.
    """

    def __init__(self, rows: Rows, masking: Masking, *, seed: int, dynamic: bool) -> None:
        self.rows = rows
        self.masking = masking
        self.seed = seed
        self.dynamic = dynamic

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        rng = sample_rng(self.seed, epoch if self.dynamic else 0, index)
        row = self.rows.row(index, rng)
        positions, labels = self.masking(row.ids, row.special, row.begins, rng)
        sample = {
            "input_ids": torch.from_numpy(row.ids),
            "token_type_ids": torch.from_numpy(row.token_types),
            "masked_positions": torch.from_numpy(positions),
            "masked_labels": torch.from_numpy(labels),
            "index": index,
        }
        return sample if row.label is None else {**sample, "next_sentence_label": row.label}


def collate_masked(samples: list[dict[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """Fill rows up to the longest; see `MaskedTextData`."""
    filling = {"input_ids": pad, "token_type_ids": 0, "masked_positions": 0, "masked_labels": IGNORE}
    batch = {name: padded([sample[name] for sample in samples], value) for name, value in filling.items()}
    batch["attention_mask"] = filled([len(sample["input_ids"]) for sample in samples])
    for name in ("index", "next_sentence_label"):
        if name in samples[0]:
            batch[name] = torch.tensor([sample[name] for sample in samples])
    return batch


def padded(rows: list[Tensor], value: int) -> Tensor:
    """(B, longest) from rows of their own lengths."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def filled(lengths: list[int]) -> Tensor:
    """(B, longest) bool, true where rows of these lengths have something."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
