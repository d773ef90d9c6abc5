"""Text for models that predict the next token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from datamodules.loader import EpochBatches
from datamodules.text.base import LanguageDataModule
from datamodules.text.cache import Backward, FlatArray
from datamodules.text.encoded import read_about, read_ids, write_stream
from datamodules.text.windows import TrackBatches, Tracks, Windows, collate_rows
from errors import UserError


class CausalTextData(LanguageDataModule):
    """A split is one stream of tokens, document after document.

    Batches: `input_ids` and `targets` (B, T) int64, the target of a token being the one after it (-100: does not
    count), `index` (B,) int64, `fresh` (B,) bool.

    For transformers, rows are windows of their own; all are fresh. For recurrent networks (`stateful`) row b goes on
    where row b of the batch before ended, unless it is fresh: the text is cut into as many tracks as there are rows
    on all processes. In evaluation the number of tracks is fixed, so that the perplexity does not depend on batch
    sizes or processes; every token but the stream's first is scored exactly once either way.

    Args:
        context: tokens T of a row.
        stateful: whether rows go on from batch to batch.
        windows: for training without state: begin anywhere at `random` (one epoch being as many windows as fit side by
            side), or `contiguous`.
        stride: in evaluation without state: tokens from a window to the next; only the new tokens are scored. None is
            `context`: no overlap.
        eval_tracks: in evaluation with state: number of tracks.
        backward: read the stream from its end, for models that predict the token before; all else stays as it is.
        **common: see `LanguageDataModule`.
    """

    def __init__(
        self,
        *,
        context: int = 128,
        stateful: bool = False,
        windows: Literal["random", "contiguous"] = "random",
        stride: int | None = None,
        eval_tracks: int = 8,
        backward: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.check_positive(context=context, stride=stride, eval_tracks=eval_tracks)
        if stride is not None and stride > context:
            raise UserError(f"data.stride is {stride}; above data.context {context} it would leave tokens out")
        self.context = context
        self.stateful = stateful
        self.windows = windows
        self.stride = stride or context
        self.eval_tracks = eval_tracks
        self.backward = backward

    def counts(self, split: str) -> dict[str, int]:
        """Size of a split in `tokens`, `words` (between white space), `characters` and `bytes`."""
        about = read_about(self._folder(split))
        return {unit: about[unit] for unit in ("tokens", "words", "characters", "bytes")}

    def units(self, split: str) -> dict[str, int]:
        """`counts` without the tokens."""
        counts = self.counts(split)
        del counts["tokens"]
        return counts

    def stream(self, split: str) -> FlatArray:
        """The ids of a split, in the order in which they are read."""
        ids = read_ids(self._folder(split))
        return Backward(ids.path, ids.dtype) if self.backward else ids

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Any]]:
        """Stacked."""
        return collate_rows

    @property
    def _shuffles(self) -> bool:
        return self.shuffle and not self.stateful  # tracks have an order

    def _folder(self, split: str) -> Path:
        self.check_split(split)
        return self.cache.made(
            ["stream", self._content(split), self.tokenizer.state()],
            lambda folder: write_stream(folder, self.corpus.texts(split), self.tokenizer),
        )

    def _dataset(self, split: str, training: bool) -> Dataset:
        ids = self.stream(split)
        if self.stateful:
            tracks = self.batch_size * self._place()["world"] if training else self.eval_tracks
            shift = training and self.shuffle
            return Tracks(ids, context=self.context, tracks=tracks, training=training, shift=shift, seed=self.seed)
        random = training and self.windows == "random"
        stride = self.context if training else self.stride
        return Windows(ids, context=self.context, stride=stride, random=random, seed=self.seed)

    def _in_order(self, dataset: Dataset) -> EpochBatches:
        if isinstance(dataset, Tracks):
            return TrackBatches(dataset, batch_size=self.eval_batch_size, **self._place())
        return super()._in_order(dataset)
