"""A data loader that can stop after any batch and go on from there, whatever its workers were doing."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.randomness import epoch_permutation
from errors import UserError

SampleKey = tuple[int, int]  # (epoch, index)


class EpochBatches(Sampler[list[SampleKey]]):
    """The batches of one rank in one epoch, as a pure function of (seed, epoch, rank, start).

    Iterating changes nothing, so that it may be iterated twice (PyTorch does, with workers).

    Training deals a permutation out to the ranks; every rank gets the same number of samples, a remainder smaller than
    the number of ranks is left out (another one each epoch). Evaluation gives rank r the samples r, r + world, ...,
    unpadded; a rank that gets none reads sample 0 once more, because a rank without a batch would skip its collective
    calls (metrics drop the duplicate).

    Args:
        length: samples in the dataset.
        batch_size: samples per batch and rank.
        training: deal out evenly, and leave out a last incomplete batch unless it is the only one (BatchNorm does not
            bear a batch of one).
        shuffle: permute, with `seed` and the epoch.
        seed: of the permutation.
        rank: of this process.
        world: number of processes.
        limit: batches (int) or the share of them (float) after which an epoch is over, as Lightning's
            `limit_train_batches`.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        training: bool,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.training = training
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        samples = len(self._share(range(length)))
        drop_last = training and samples >= batch_size
        self.full = samples // batch_size if drop_last else -(-samples // batch_size)
        self.stop = min(self.full, limit) if isinstance(limit, int) else int(self.full * limit)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.full

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # One array, and no list of keys: a corpus may have many millions of samples.
        order = epoch_permutation(self.seed, self.epoch, self.length) if self.shuffle else range(self.length)
        mine = self._share(order)[self.start * self.batch_size : self.stop * self.batch_size]
        epoch = self.epoch  # of this iteration, even if the next one begins while workers read on
        return (
            [(epoch, int(index)) for index in mine[i : i + self.batch_size]]
            for i in range(0, len(mine), self.batch_size)
        )

    def advance(self) -> None:
        """One more batch of this epoch was taken."""
        self.start += 1
        if self.start >= self.stop:
            self.epoch, self.start = self.epoch + 1, 0

    def _share(self, order: Any) -> Any:
        if not self.training:
            return order[self.rank :: self.world] or order[:1]
        if self.length < self.world:  # fewer samples than processes: all processes read all of them
            return order
        return order[: self.length // self.world * self.world][self.rank :: self.world]


class ResumableLoader:
    """A DataLoader with a state: (epoch, batches taken in it).

    `state_dict` counts the batches that the training loop has taken, not those that workers have read ahead. After
    the last batch of an epoch the state is the beginning of the next one. The random stream of a sample comes with its
    key, so workers need no state, and their number may change between stop and resumption; so may the number of
    processes, if the samples per step over all of them stay the same.

    A UserError in a worker arrives as itself, one sentence; PyTorch would wrap it into the worker's traceback.

    It holds a DataLoader and is none: Lightning takes a DataLoader apart and builds it anew for prediction.

    Args:
        dataset: indexed by (epoch, index).
        batches: which samples, in which order.
        collate: list of samples -> batch.
        num_workers: worker processes; 0 reads in the training process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: EpochBatches,
        *,
        collate: Callable[[list[Any]], Any],
        num_workers: int,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.loader = DataLoader(
            _ErrorsAsSamples(dataset),
            batch_sampler=batches,
            collate_fn=partial(_collate_or_error, collate),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_one_thread,
            # DataLoader draws the workers' base seed from the global stream unless it has one of its own.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return _Batches(self.batches, iter(self.loader))

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches taken in it, and what they are counted in: samples per step, samples in the dataset."""
        batches = self.batches
        return {
            "epoch": batches.epoch,
            "position": batches.start,
            "step": batches.batch_size * batches.world,
            "length": batches.length,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `position` batches of `epoch`.

        Raises:
            UserError: a position within an epoch of other batches, or of a dataset of another size.
        """
        now = self.state_dict()
        if state["position"] and (state["step"], state["length"]) != (now["step"], now["length"]):
            raise UserError(
                f"the checkpoint was written within an epoch of {state['length']} samples, {state['step']} per step "
                f"over all processes, but this run has {now['length']} samples, {now['step']} per step: go on with the "
                "same data and data.batch_size times processes, or from a checkpoint of an epoch's end"
            )
        self.batches.epoch = state["epoch"]
        self.batches.start = state["position"]


class _Batches:
    """An iterator that tells the sampler of each training batch that is taken, and raises what workers hand over."""

    def __init__(self, batches: EpochBatches, iterator: Iterator[Any]) -> None:
        self.batches = batches
        self.iterator = iterator

    def __iter__(self) -> "_Batches":
        return self

    def __next__(self) -> Any:
        batch = next(self.iterator)
        if isinstance(batch, UserError):
            try:
                raise batch
            finally:
                del batch  # or error, traceback and this frame would be a cycle that keeps the workers alive
        if self.batches.training:
            self.batches.advance()
        return batch


class _ErrorsAsSamples(Dataset):
    """A user's mistake as a sample, so that it passes from the worker to the training process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate_or_error(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    return next((sample for sample in samples if isinstance(sample, UserError)), None) or collate(samples)


def _one_thread(worker: int) -> None:
    """Workers are parallel already: threads of their own would fight for the cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
