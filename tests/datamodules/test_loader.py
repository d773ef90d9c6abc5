import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.loader import EpochBatches, ResumableLoader
from datamodules.randomness import epoch_permutation, sample_rng
from errors import UserError


class Noise(Dataset):
    """Every sample is noise from its own stream: equal samples mean equal augmentation."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        epoch, index = key
        return epoch, index, sample_rng(7, epoch, index).integers(2**60)


def loader(length=10, batch_size=3, workers=0, training=True, shuffle=True, **options):
    batches = EpochBatches(length=length, batch_size=batch_size, training=training, shuffle=shuffle, seed=5, **options)
    return ResumableLoader(Noise(length), batches, collate=list, num_workers=workers)


def place(loader):
    state = loader.state_dict()
    return state["epoch"], state["position"]


def epochs(loader, count):
    return [batch for _ in range(count) for batch in loader]


def test_order_and_noise_do_not_depend_on_workers():
    expected = epochs(loader(), 3)
    assert epochs(loader(workers=1), 3) == epochs(loader(workers=2), 3) == expected
    assert {epoch for batch in expected for epoch, _, _ in batch} == {0, 1, 2}
    orders = [[index for batch in expected[i : i + 3] for _, index, _ in batch] for i in (0, 3, 6)]
    assert orders[0] != orders[1] != orders[2]


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    epochs(loader(), 2)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_position(workers):
    expected = epochs(loader(), 3)  # 3 batches an epoch
    for taken in (0, 1, 2, 3, 4, 5, 6) if workers == 0 else (2, 3):
        first = loader(workers=2 - workers)
        seen = []
        while len(seen) < taken:
            for batch in first:
                seen.append(batch)
                if len(seen) == taken:
                    break
        second = loader(workers=workers)
        second.load_state_dict(first.state_dict())
        rest = []
        while len(rest) < 9 - taken:
            rest += list(second)
        assert seen + rest == expected


def test_state_after_the_last_batch_is_the_next_epoch():
    first = loader()
    list(first)
    assert place(first) == (1, 0)


@pytest.mark.parametrize("limit", [2, 0.7])
def test_a_limited_epoch_is_an_epoch(limit):
    limited = loader(limit=limit)
    assert len(limited) == 3  # Lightning applies the limit itself
    assert len(list(limited)) == 2
    assert place(limited) == (1, 0)
    assert [epoch for batch in limited for epoch, _, _ in batch] == [1] * 6


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_ranks_partition_an_epoch(world):
    shares = [[i for b in loader(11, 2, rank=r, world=world) for _, i, _ in b] for r in range(world)]
    assert len({len(share) for share in shares}) == 1
    seen = sorted(index for share in shares for index in share)
    assert len(seen) == len(set(seen)) >= 11 - world - 2 * world


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 5, 12])
def test_evaluation_sees_every_sample_and_no_rank_is_idle(world, length):
    shares = [
        [i for b in loader(length, 4, training=False, shuffle=False, rank=r, world=world) for _, i, _ in b]
        for r in range(world)
    ]
    assert set().union(*shares) == set(range(length))
    assert all(shares)
    if world <= length:
        assert sorted(i for share in shares for i in share) == list(range(length))


def test_evaluation_starts_over_after_breaking_off():
    evaluation = loader(training=False, shuffle=False)
    next(iter(evaluation))
    assert next(iter(evaluation))[0][1] == 0


@pytest.mark.parametrize("world", [1, 2, 4])
def test_resume_with_another_number_of_processes(world):
    """Four samples per step over all processes: the steps are the same sets, before and after."""

    def steps(world, state=None):
        loaders = [loader(22, 4 // world, rank=rank, world=world) for rank in range(world)]
        for one in loaders if state else []:
            one.load_state_dict(state)
        return [{index for batch in step for _, index, _ in batch} for step in zip(*loaders, strict=True)]

    stopped = loader(22, 4)
    iterator = iter(stopped)
    next(iterator), next(iterator)
    assert steps(world) == steps(1) and len(steps(1)) == 5
    assert steps(world, stopped.state_dict()) == steps(1)[2:]


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"length": 11}, {"world": 2}])
def test_a_place_within_an_epoch_of_other_batches_is_refused(changes):
    stopped, other = loader(), loader(**changes)
    next(iter(stopped))
    with pytest.raises(UserError, match=r"10 samples, 3 per step over all processes, but this run has 1\d samples"):
        other.load_state_dict(stopped.state_dict())
    list(stopped), list(stopped)
    other.load_state_dict(stopped.state_dict())  # an epoch's end is the same place for all
    assert place(other)[1] == 0


class Mistaken(Noise):
    def __getitem__(self, key):
        if key[1] == 4:
            raise UserError("4.jpg: a sentence")
        return super().__getitem__(key)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_a_users_mistake_arrives_as_one_sentence(workers, training):
    batches = EpochBatches(length=6, batch_size=2, training=training)
    iterator = iter(ResumableLoader(Mistaken(6), batches, collate=list, num_workers=workers))
    next(iterator), next(iterator)
    with pytest.raises(UserError, match=r"^4\.jpg: a sentence$"):
        next(iterator)


def test_small_datasets_still_give_a_batch():
    assert [len(b) for b in loader(3, 8)] == [3]
    assert [len(b) for b in loader(2, 8, rank=2, world=3)] == [2]  # fewer samples than processes


def test_sample_streams_are_distinct_and_reproducible():
    draws = {(s, e, i): sample_rng(s, e, i).integers(2**63) for s in range(2) for e in range(3) for i in range(50)}
    assert len(set(draws.values())) == len(draws)
    assert sample_rng(1, 2, 49).integers(2**63) == draws[1, 2, 49]
    assert np.corrcoef(sample_rng(0, 0, 0).random(500), sample_rng(0, 0, 1).random(500))[0, 1] < 0.15


def test_permutations_have_their_own_stream():
    order = epoch_permutation(3, 4, 50)
    assert sorted(order) == list(range(50)) and (order == epoch_permutation(3, 4, 50)).all()
    for other in (epoch_permutation(3, 5, 50), epoch_permutation(4, 4, 50), sample_rng(3, 4, 0).permutation(50)):
        assert (order != other).any()
