"""Running text as rows of tokens and the tokens that follow them: windows, and tracks for recurrent networks.

A text of N tokens has N - 1 targets; target j is token j + 1, and input j is token j.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loader import EpochBatches, SampleKey
from datamodules.randomness import sample_rng
from datamodules.text.cache import FlatArray
from errors import UserError

IGNORE = -100  # a target that does not count


class Windows(Dataset):
    """Windows of `context` tokens.

    In order, window i begins at token i * stride, and only its last `stride` targets count (of the first all do), so
    that every target counts exactly once, with at least context - stride tokens before it. Targets beyond the end do
    not count.

    Args:
        ids: the text.
        context: length T of a window.
        stride: from a window's beginning to the next's, 1 to `context`.
        random: begin anywhere instead, drawn with seed, epoch and index; a split has as many windows as fit side by
            side, and all their targets count.
        seed: of what is drawn.
    """

    def __init__(self, ids: FlatArray, *, context: int, stride: int, random: bool = False, seed: int = 0) -> None:
        self.ids = ids
        self.context = context
        self.stride = stride
        self.random = random
        self.seed = seed
        self.targets = len(ids) - 1
        if self.targets < (context if random else 1):
            raise UserError(
                f"{len(ids)} tokens of text do not fill a single window of data.context {context}; add text or lower it"
            )

    def __len__(self) -> int:
        if self.random:
            return self.targets // self.context
        return 1 + -(-max(self.targets - self.context, 0) // self.stride)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        if self.random:
            start = int(sample_rng(self.seed, epoch, index).integers(self.targets - self.context + 1))
            old = 0
        else:
            start = index * self.stride
            old = self.context - self.stride if index else 0
        return row(self.ids, index, start, start + self.context, self.context, old=old)


class Tracks(Dataset):
    """The text cut into `tracks` pieces of equal length, read side by side, `context` tokens at a time.

    Sample s * tracks + t is step s of track t; each step goes on where the one before ended.

    Args:
        ids: the text.
        context: tokens T of a step.
        tracks: their number.
        training: leave out the remainders, so that every row is full; otherwise every target counts exactly once.
        shift: begin each epoch at another token below `context`, drawn with `seed`, so that the places at which
            backpropagation is cut are not always the same.
        seed: of what is drawn.
    """

    def __init__(
        self, ids: FlatArray, *, context: int, tracks: int, training: bool, shift: bool = False, seed: int = 0
    ) -> None:
        self.ids = ids
        self.context = context
        self.tracks = tracks
        self.shift = shift
        self.seed = seed
        self.targets = len(ids) - 1
        if training:
            self.steps = (self.targets - (context - 1 if shift else 0)) // tracks // context
            self.length = self.steps * context  # of a track
        else:
            self.length = -(-self.targets // tracks)
            self.steps = -(-self.length // context)
        if self.steps < 1:
            raise UserError(
                f"{len(ids)} tokens of text do not fill {tracks} tracks of data.context {context}; add text, or lower "
                "data.context, data.batch_size or the number of processes"
            )

    def __len__(self) -> int:
        return self.steps * self.tracks

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        step, track = divmod(index, self.tracks)
        shift = int(sample_rng(self.seed, epoch, 0).integers(self.context)) if self.shift else 0
        begin = shift + track * self.length
        start = begin + step * self.context
        stop = min(start + self.context, begin + self.length, shift + self.targets)
        return row(self.ids, index, start, stop, self.context, fresh=step == 0)


def row(
    ids: FlatArray, index: int, start: int, stop: int, width: int, *, old: int = 0, fresh: bool = True
) -> dict[str, Any]:
    """The inputs from `start` to `stop` with their targets, filled up to `width`; the first `old` targets are ignored.

    Inputs are filled up with 0; whether that is a token's id makes no difference, since a causal network looks back
    only.
    """
    tokens = np.asarray(ids[start : stop + 1], np.int64)
    inputs = np.zeros(width, np.int64)
    targets = np.full(width, IGNORE, np.int64)
    known = max(len(tokens) - 1, 0)
    inputs[:known] = tokens[:known]
    targets[old:known] = tokens[1 + old :]
    return {
        "input_ids": torch.from_numpy(inputs),
        "targets": torch.from_numpy(targets),
        "index": index,
        "fresh": fresh,
    }


class TrackBatches(EpochBatches):
    """Evaluation of `Tracks`: rank r reads the tracks r, r + world, ..., at most `batch_size` side by side, to the end.

    A last group of fewer tracks is filled up with repetitions of its first, so that the state of a recurrent network
    keeps its shape; metrics drop what comes twice.
    """

    def __init__(self, dataset: Tracks, *, batch_size: int, rank: int, world: int) -> None:
        super().__init__(length=len(dataset), batch_size=batch_size, training=False, rank=rank, world=world)
        mine = list(range(dataset.tracks))[rank::world] or [0]
        rows = min(batch_size, len(mine))
        groups = [mine[i : i + rows] for i in range(0, len(mine), rows)]
        self.groups = [group + group[:1] * (rows - len(group)) for group in groups]
        self.steps = dataset.steps
        self.tracks = dataset.tracks

    def __len__(self) -> int:
        return len(self.groups) * self.steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for group in self.groups:
            for step in range(self.steps):
                yield [(self.epoch, step * self.tracks + track) for track in group]


def collate_rows(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack rows of equal width: input_ids and targets (B, T) int64, index (B,) int64, fresh (B,) bool."""
    return {
        name: torch.stack([sample[name] for sample in samples])
        if isinstance(samples[0][name], Tensor)
        else torch.tensor([sample[name] for sample in samples])
        for name in samples[0]
    }
