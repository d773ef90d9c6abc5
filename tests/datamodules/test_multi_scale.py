"""Training at several sizes: one for a batch, the same on all processes, with any workers, after a resumption."""

import pytest
import torch

from datamodules import ShapesDetection
from datamodules.multi_scale import MultiScaleBatches
from errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shapes"))


def shapes(root, **options):
    common = {"train_images": 12, "val_images": 3, "test_images": 0, "picture_size": 64, "image_size": 64}
    sizes = {"batch_size": 2, "training_sizes": [32, 64, 96], "size_every": 2, "augmentation": "yolo"}
    return ShapesDetection(root=root, **common | sizes | options)


def sides(batches):
    return [batch["image"].shape[-1] for batch in batches]


def batches(**options):
    defaults = {"length": 400, "batch_size": 2, "training": True, "sizes": [32, 64, 96], "every": 10, "seed": 3}
    return MultiScaleBatches(**defaults | options)


def test_sizes_change_every_few_batches_and_epoch():
    sampler = batches()
    first = [key[0][2] for key in sampler]
    assert len(first) == 200 and all(len(set(first[i : i + 10])) == 1 for i in range(0, 200, 10))
    assert set(first) == {32, 64, 96}
    assert all(len({key[2] for key in keys}) == 1 for keys in sampler)
    sampler.epoch = 1
    assert [key[0][2] for key in sampler] != first


def test_sizes_are_the_same_on_all_processes_and_from_any_start():
    whole = batches()
    ranks = [batches(rank=rank, world=2, batch_size=1) for rank in (0, 1)]
    size = [keys[0][2] for keys in whole]
    assert [keys[0][2] for keys in ranks[0]] == [keys[0][2] for keys in ranks[1]] == size
    whole.start = 37
    assert [keys[0][2] for keys in whole] == size[37:]
    assert [batches(seed=4).side(i) for i in range(200)] != size


def test_batches_are_square_and_boxes_inside(root):
    seen = set()
    loader = shapes(root).train_dataloader()
    for _ in range(4):
        for batch in loader:
            side = batch["image"].shape[-1]
            seen.add(side)
            assert batch["image"].shape == (2, 3, side, side) and batch["targets"]["boxes"].max() <= side
    assert seen == {32, 64, 96}
    assert sides(shapes(root).val_dataloader()) == [64] * 2


def test_the_same_with_workers_and_after_a_resumption(root):
    straight = list(shapes(root).train_dataloader())
    loader = shapes(root, num_workers=2).train_dataloader()
    iterator = iter(loader)
    begun = [next(iterator) for _ in range(3)]
    state = loader.state_dict()
    resumed = shapes(root).train_dataloader()
    resumed.load_state_dict(state)
    for batch, expected in zip([*begun, *resumed], straight, strict=True):
        assert torch.equal(batch["image"], expected["image"])
        assert torch.equal(batch["targets"]["boxes"], expected["targets"]["boxes"])


def test_bad_sizes():
    for options in ({"training_sizes": []}, {"training_sizes": [32, 0]}, {"size_every": 0}):
        with pytest.raises(UserError, match=f"data.{next(iter(options))} is 0"):
            ShapesDetection(**options)
