"""Text for ELMo: sentences in both directions, words as characters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from datamodules.loader import EpochBatches
from datamodules.text.base import LanguageDataModule
from datamodules.text.elmo_sentences import EncodedSentences, SentenceTracks, collate_sentences, write_sentences
from datamodules.text.tokenizers import Words
from datamodules.text.windows import TrackBatches
from errors import UserError


class ElmoTextData(LanguageDataModule):
    """A split is its sentences, dealt to rows that go on from batch to batch.

    Batches: `characters` (U, 50) int64 of the batch's different words, `words` and `backward_words` (B, T) int64 that
    say which of them stands where, `targets` and `backward_targets` (B, T) int64 in the vocabulary (-100: does not
    count), `index` (B,) int64, `fresh` (B,) bool.

    The vocabulary is needed for prediction only and goes by frequency; what is read are characters, of any word.

    Args:
        context: steps T of a row: words, and one for each sentence's beginning.
        eval_tracks: rows that evaluation reads side by side. It is fixed, so that the perplexity does not depend on
            batch sizes or processes.
        tokenizer: `words`, or a file of words.
        **common: see `LanguageDataModule`.
    """

    roles = ("cls",)  # <S>, predicted at the end of the backward stream; </S> is `eos`, which words always have

    def __init__(self, *, context: int = 20, eval_tracks: int = 8, tokenizer: str = "words", **common: Any) -> None:
        super().__init__(tokenizer=tokenizer, **common)
        self.check_positive(context=context, eval_tracks=eval_tracks)
        self.context = context
        self.eval_tracks = eval_tracks

    def sentences(self, split: str) -> EncodedSentences:
        """The sentences of a split."""
        self.check_split(split)
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, Words) or tokenizer.eos is None:
            raise UserError(f"data.tokenizer {self.recipe.tokenizer} makes no words, as ELMo needs them; take 'words'")

        def make(folder: Path) -> None:
            write_sentences(folder, self.corpus.documents(split), tokenizer)

        return EncodedSentences(self.cache.made(["elmo", self._content(split), tokenizer.state()], make))

    def counts(self, split: str) -> dict[str, int]:
        """Size of a split in `sentences`, and in what is predicted in each direction (`tokens`)."""
        sentences = self.sentences(split)
        return {"sentences": len(sentences), "tokens": sentences.steps}

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Any]]:
        """See `collate_sentences`."""
        return collate_sentences

    @property
    def _shuffles(self) -> bool:
        return False  # sentences are shuffled; rows have an order

    def _dataset(self, split: str, training: bool) -> Dataset:
        tracks = self.batch_size * self._place()["world"] if training else self.eval_tracks
        return SentenceTracks(
            self.sentences(split),
            context=self.context,
            tracks=tracks,
            training=training,
            shuffle=self.shuffle,
            seed=self.seed,
        )

    def _in_order(self, dataset: Dataset) -> EpochBatches:
        if isinstance(dataset, SentenceTracks):
            return TrackBatches(dataset, batch_size=self.eval_batch_size, **self._place())
        return super()._in_order(dataset)
