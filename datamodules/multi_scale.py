"""Training at several sizes: a size for a whole batch, the same on every process."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from datamodules.loader import EpochBatches

SizedKey = tuple[int, int, int]  # (epoch, index, side in pixels)


class MultiScaleBatches(EpochBatches):
    """Batches whose keys say the side of their pictures, which is drawn anew every few batches (YOLOv2, section 2).

    The size is a pure function of (seed, epoch, batch within the epoch): the same on all processes, with any number of
    workers, and after a resumption. All pictures of a batch have one size, so there are as many shapes as sizes.

    Args:
        sizes: sides in pixels to draw from, all equally likely.
        every: batches that have one size.
        **common: see `EpochBatches`.
    """

    def __init__(self, *, sizes: Sequence[int], every: int, **common: Any) -> None:
        super().__init__(**common)
        self.sizes = list(sizes)
        self.every = every

    def __iter__(self) -> Iterator[list[SizedKey]]:
        batches = enumerate(super().__iter__(), self.start)
        return iter([[(*key, self.side(number)) for key in keys] for number, keys in batches])

    def side(self, batch: int) -> int:
        """The side of a batch of this epoch."""
        state = np.random.SeedSequence((self.seed, self.epoch, batch // self.every), spawn_key=(2,))
        return self.sizes[np.random.Generator(np.random.Philox(state)).integers(len(self.sizes))]
