"""Metrics that are one number, however a dataset is spread over processes and batches.

Every process keeps its results by dataset index. When the epoch ends, one gather brings them to rank 0, which drops
what came twice, sorts by index, checks that nothing is missing and computes; the value is broadcast. Rank 0 therefore
sees the same input on 1 or 64 processes, and what it computes has the same bits.

Collectives run in the default process group, with pickled objects. Under NCCL torch carries those through the current
GPU, which Lightning sets per process. A gloo group beside it would save that copy of some megabytes, but has to be
created by all processes together and needs a second network path, which not every cluster offers.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torchmetrics import Metric


class IncompleteError(RuntimeError):
    """An evaluation has missed samples of its dataset, or has seen samples that are none of its."""


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_by_index(samples: dict[int, Any]) -> dict[int, Any] | None:
    """Bring the samples of all processes to rank 0.

    Args:
        samples: of this process, by dataset index; may be empty. Values are pickled if there are several processes.

    Returns:
        On rank 0 the samples of all processes in ascending order of their indices, each once (of an index that several
        processes saw, the lowest rank's value); None elsewhere.
    """
    parts: list[Any] | None = [samples]
    if _in_group():
        parts = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(samples, parts)
    if parts is None:
        return None
    merged = {index: value for part in reversed(parts) for index, value in part.items()}
    return dict(sorted(merged.items()))


def check_complete(indices: Iterable[int], size: int) -> None:
    """Raise `IncompleteError`, naming what is wrong, unless `indices` are exactly 0..size-1."""
    seen = set(indices)
    missing = sorted(set(range(size)) - seen)
    foreign = sorted(seen - set(range(size)))
    if missing:
        raise IncompleteError(
            f"the evaluation saw {size - len(missing)} of {size} samples; missing are the indices {_listed(missing)}: "
            "every index must be evaluated by some process (set `complete = False` on the metric to evaluate a part)"
        )
    if foreign:
        raise IncompleteError(
            f"the evaluation saw the indices {_listed(foreign)}, but the dataset has {size} samples only"
        )


def _listed(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")


def from_rank_zero(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, on every process; it is called nowhere else.

    Raises:
        RuntimeError: on the other processes, if it raised on rank 0: nobody waits for a value that never comes.
    """
    if not _in_group():
        return function()
    message: list[Any] = [None, None]  # the value, or the error
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            message[0] = function()
        except Exception as raised:
            error = raised
            message[1] = f"{type(raised).__name__}: {raised}"
    dist.broadcast_object_list(message, src=0)
    if error is not None:
        raise error
    if message[1] is not None:
        raise RuntimeError(f"rank 0 could not compute the metric: {message[1]}")
    return message[0]


class ExactMetric(Metric):
    """Base of metrics that keep results by dataset index and compute on rank 0.

    A subclass fills `self.samples[index]` in `update` and defines `value`. `compute` is called by all processes
    together, returns the same on each, and keeps its result until the next `update` or `reset`. Samples are no states
    of torchmetrics: they are not synchronised by it, not moved between devices and not stored in checkpoints.

    Attributes:
        size: number of samples of the dataset; None leaves completeness unchecked.
        complete: whether every sample must have been seen. Set it to False to evaluate a part on purpose, as a sanity
            check or `limit_val_batches` does.
        gathered: on rank 0 after `compute` the samples of all processes, by ascending index; None before and elsewhere.
    """

    full_state_update = False

    def __init__(self, size: int | None) -> None:
        super().__init__(sync_on_compute=False)
        self.size = size
        self.complete = True
        self.samples: dict[int, Any] = {}
        self.gathered: dict[int, Any] | None = None

    @abstractmethod
    def value(self, samples: dict[int, Any]) -> dict[str, float]:
        """The metric of samples by ascending index; runs on rank 0."""

    def compute(self) -> dict[str, float]:
        """The metric over the samples of all processes, the same on each.

        Raises:
            IncompleteError: on rank 0, if `complete` is set and samples are missing; RuntimeError elsewhere.
        """
        self.gathered = gather_by_index(self.samples)
        return from_rank_zero(self._checked_value)

    def _checked_value(self) -> dict[str, float]:
        assert self.gathered is not None
        if self.complete and self.size is not None:
            check_complete(self.gathered, self.size)
        return self.value(self.gathered)

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.samples = {}
        self.gathered = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the metric of a batch is no part of the metric of a dataset."""
        raise NotImplementedError(f"{type(self).__name__} is a metric of a dataset: call update, then compute")
