import torch

from datamodules.collate import collate_detection


def sample(index, height, width, objects):
    boxes = torch.arange(4.0 * objects).reshape(objects, 4)
    return {
        "image": torch.full((3, height, width), index + 1, dtype=torch.uint8), "image_size": (height, width - 1),
        "original_size": (2 * height, 2 * width), "scale": (0.5, 0.25), "index": index, "boxes": boxes,
        "labels": torch.arange(objects), "iscrowd": torch.ones(objects, dtype=torch.bool),
        "area": torch.arange(objects) + 0.5,
    }  # fmt: skip


def test_pictures_of_different_sizes_and_object_counts():
    batch = collate_detection([sample(0, 4, 6, 2), sample(1, 5, 3, 9), sample(2, 1, 1, 0)])
    assert batch["image"].shape == (3, 3, 5, 6) and batch["image"].dtype == torch.uint8
    assert (batch["image"][0, :, :4] == 1).all() and not batch["image"][0, :, 4:].any()
    assert (batch["image"][1, :, :, :3] == 2).all() and not batch["image"][1, :, :, 3:].any()
    assert batch["image"].sum() == 3 * (24 * 1 + 15 * 2 + 3)
    assert batch["image_size"].tolist() == [[4, 5], [5, 2], [1, 0]]
    assert batch["original_size"].tolist() == [[8, 12], [10, 6], [2, 2]]
    assert batch["scale"].tolist() == [[0.5, 0.25]] * 3 and batch["index"].tolist() == [0, 1, 2]
    targets = batch["targets"]
    assert {name: (tuple(t.shape), t.dtype) for name, t in targets.items()} == {
        "boxes": ((3, 16, 4), torch.float32), "labels": ((3, 16), torch.int64),
        "iscrowd": ((3, 16), torch.bool), "area": ((3, 16), torch.float32),
    }  # fmt: skip
    assert targets["labels"][:2].tolist() == [[0, 1] + [-1] * 14, [*range(9)] + [-1] * 7]
    assert (targets["labels"][2] == -1).all()
    assert targets["boxes"][0, 1].tolist() == [4, 5, 6, 7] and not targets["boxes"][0, 2:].any()
    assert targets["iscrowd"].sum(1).tolist() == [2, 9, 0] and targets["area"][1, 8] == 8.5


def test_no_object_at_all_still_has_room_for_eight():
    batch = collate_detection([sample(0, 2, 2, 0), sample(1, 2, 2, 0)])
    assert batch["targets"]["boxes"].shape == (2, 8, 4) and (batch["targets"]["labels"] == -1).all()


def test_counts_at_the_multiple():
    assert [collate_detection([sample(0, 2, 2, n)])["targets"]["labels"].shape[1] for n in (1, 8, 9)] == [8, 8, 16]
