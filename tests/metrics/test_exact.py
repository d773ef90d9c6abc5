import copy
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.multiprocessing

from metrics.curves import detection_curves
from metrics.detection import DetectionMetric
from metrics.exact import IncompleteError, check_complete, gather_by_index
from metrics.loss import DatasetLoss
from tests.metrics.synthetic import pycocotools_evaluation, random_case


class Term(NamedTuple):
    numerator: torch.Tensor
    denominator: torch.Tensor
    weight: float
    offset: float


SIZES = (2, 9, 13)  # fewer images than processes, and not divisible by 2 or 3


def sample_terms(indices):
    """Numbers that float32 sums would round differently in another order."""
    i = torch.as_tensor(indices, dtype=torch.float32)
    return {
        "class": Term((i + 0.1).sqrt() * 10 ** (i % 7), 1 + i % 3, 1.0, 1.0),
        "box": Term((i + 0.3).sin(), i % 2, 50.0, 0.25),
    }


def evaluated(size, indices, batch_size):
    """Metric and loss of random images, with this process seeing `indices`."""
    truth, results = random_case(size, images=size)
    metric, loss = DetectionMetric(truth), DatasetLoss(size)
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        metric.update(torch.tensor(batch), [results[i] for i in batch])
        loss.update(torch.tensor(batch), sample_terms(batch))
    return metric, loss


def worker(rank, world, folder):
    """Everything that needs several processes, in one start of them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    outcome = {}
    for size in SIZES:
        shares = {
            "unpadded": list(range(rank, size, world)),
            "padded": [i % size for i in range(rank, -(-size // world) * world, world)],
            "all on one": list(range(size)) if rank == world - 1 else [],
        }
        for sharing, indices in shares.items():
            for batch_size in (1, 4):
                metric, loss = evaluated(size, indices, batch_size)
                outcome[size, sharing, batch_size] = (metric.compute(), loss.compute())
                assert (metric.gathered is None) == (rank > 0)
                assert (detection_curves(metric) is None) == (rank > 0)
    # A sample that nobody evaluates is an error on every process, and the group can go on.
    metric, _ = evaluated(9, [i for i in range(rank, 9, world) if i != 4], 3)
    with pytest.raises(IncompleteError if rank == 0 else RuntimeError, match="missing are the indices 4:"):
        metric.compute()
    metric.complete = False
    outcome["part"] = metric.compute()
    repeated = gather_by_index({0: rank, rank: rank})
    assert repeated == (dict(zip(range(world), range(world), strict=True)) if rank == 0 else None)  # the lowest rank's
    torch.save(outcome, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_bits_on_any_number_of_processes(world, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(worker, (world, str(tmp_path)), nprocs=world)
    outcomes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for size in SIZES:
        metric, loss = evaluated(size, list(range(size)), 3)
        expected = pickle.dumps((metric.compute(), loss.compute()))
        for outcome in outcomes:
            for sharing in ("unpadded", "padded", "all on one"):
                for batch_size in (1, 4):
                    assert pickle.dumps(outcome[size, sharing, batch_size]) == expected, (size, sharing, batch_size)
    metric, _ = evaluated(9, [0, 1, 2, 3, 5, 6, 7, 8], 3)
    metric.complete = False
    expected = pickle.dumps(metric.compute())
    assert all(pickle.dumps(outcome["part"]) == expected for outcome in outcomes)


def test_a_part_is_evaluated_as_pycocotools_evaluates_some_images():
    part = [1, 2, 5, 7]
    metric, _ = evaluated(9, part, 2)
    metric.complete = False
    values = metric.compute()
    truth, _ = random_case(9, images=9)
    images = [truth["image_ids"][i] for i in part]
    evaluation = pycocotools_evaluation(truth, metric.coco_results(), images=images)
    stats = np.where(evaluation.stats > -1, evaluation.stats, np.nan)
    np.testing.assert_allclose(list(values.values())[:12], stats, rtol=0, atol=1e-12)


def test_gather_sorts_in_one_process():
    assert list(gather_by_index({3: "c", 1: "a"}).items()) == [(1, "a"), (3, "c")]


def test_completeness():
    check_complete([2, 0, 1], 3)
    with pytest.raises(IncompleteError, match=r"saw 2 of 4 samples; missing are the indices 1, 2:"):
        check_complete([0, 3], 4)
    with pytest.raises(IncompleteError, match=r"missing are the indices 0, 1, .*, 9, \.\.\.:"):
        check_complete([], 100)
    with pytest.raises(IncompleteError, match="saw the indices 7, but the dataset has 2 samples only"):
        check_complete([0, 1, 7], 2)
    metric, loss = evaluated(9, [0, 1], 2)
    for incomplete in (metric, loss):
        with pytest.raises(IncompleteError, match="saw 2 of 9"):
            incomplete.compute()


def test_life_of_a_metric():
    metric, _ = evaluated(9, list(range(9)), 4)
    with pytest.raises(RuntimeError, match="after compute"):
        metric.coco_results()
    first = metric.compute()
    assert metric.compute() is first  # cached
    assert len(metric.coco_results()) > 0
    assert metric.state_dict() == {}
    moved = copy.deepcopy(metric).to(torch.device("meta"))  # nothing to move
    assert moved.compute() == pytest.approx(first, nan_ok=True)
    metric.reset()
    assert not metric.samples
    with pytest.warns(UserWarning, match="before the"), pytest.raises(IncompleteError, match="saw 0 of 9"):
        metric.compute()
    with pytest.raises(NotImplementedError, match="call update, then compute"):
        metric(torch.tensor([0]), [])


def test_repeated_images_count_once():
    metric, _ = evaluated(9, list(range(9)), 4)
    padded, _ = evaluated(9, [*range(9), 0, 1, 2, 8], 4)
    assert pickle.dumps(metric.compute()) == pickle.dumps(padded.compute())


def test_tensors_of_any_dtype_are_taken():
    truth, results = random_case(9, images=9)
    metric = DetectionMetric(truth)
    as_tensors = [{key: torch.as_tensor(value) for key, value in result.items()} for result in results]
    for result in as_tensors:
        result["scores"] = result["scores"].to(torch.bfloat16).requires_grad_()
        result["labels"] = result["labels"].to(torch.int32)
    metric.update(torch.arange(9), as_tensors)
    reference = DetectionMetric(truth)
    rounded = [result | {"scores": result["scores"].detach().float().numpy()} for result in as_tensors]
    reference.update(np.arange(9), rounded)
    assert metric.compute() == pytest.approx(reference.compute(), nan_ok=True, abs=0)
