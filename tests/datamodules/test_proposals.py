import os

import numpy as np
import pytest
import torch

from datamodules import ShapesDetection
from datamodules.collate import collate_detection
from datamodules.dataset import as_sample
from datamodules.proposals import PROPOSAL, ProposalSource, with_proposals
from datamodules.selective_search import (
    Regions,
    SelectiveSearch,
    describe,
    group,
    histograms,
    in_colour,
    known_source,
)
from datamodules.shapes import draw
from datamodules.transforms import Transformed
from errors import UserError
from tests.datamodules.builders import picture


class Grid(ProposalSource):
    """Quarters of the picture; counts its searches."""

    def __init__(self, cache=None, workers=0, parts=2):
        super().__init__(cache=cache, workers=workers)
        self.parts = parts
        self.searches = 0

    settings = property(lambda self: {"parts": self.parts})
    version = 1

    def search(self, image):
        self.searches += 1
        height, width = image.shape[0] / self.parts, image.shape[1] / self.parts
        return np.array(
            [
                [x * width, y * height, (x + 1) * width, (y + 1) * height]
                for y in range(self.parts)
                for x in range(self.parts)
            ],
            np.float32,
        )


def noise(height=30, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- selective search


def test_histograms_are_of_each_segment_and_channel():
    values = np.array([[[0.0, 1.0], [0.24, 0.5]], [[0.25, 0.5], [0.99, 0.5]]])  # (2, 2, 2)
    found = histograms(values, np.array([0, 0, 1, 1]), 2, bins=4)
    np.testing.assert_allclose(found, [[2, 0, 0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0, 2, 0]] / np.array(4.0))


def test_segments_are_described():
    segments = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    regions = describe(np.zeros((3, 3, 1), np.float32), segments)
    assert regions.boxes.tolist() == [[0, 0, 2, 2], [2, 0, 3, 2], [0, 2, 3, 3]]
    np.testing.assert_allclose(regions.sizes, np.array([4, 2, 3]) / 9)
    assert regions.adjacent.tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    np.testing.assert_allclose(regions.colours.sum(1), 1)
    np.testing.assert_allclose(regions.textures.sum(1), 1)


def regions(colours, sizes=(0.25, 0.25, 0.25, 0.25)):
    """Four columns side by side, a picture of 8 x 4 pixels."""
    near = np.abs(np.subtract.outer(range(4), range(4))) == 1
    boxes = np.array([[2 * i, 0, 2 * i + 2, 4] for i in range(4)])
    return Regions(np.array(sizes), boxes, np.array(colours, float), np.ones((4, 1)), near, 32)


def test_the_most_similar_neighbours_are_joined_first():
    # Columns 0 and 3 are alike but apart; 1 and 2 are alike and neighbours.
    boxes = group(regions([[1, 0], [0.2, 0.8], [0.1, 0.9], [1, 0]]), "c")
    assert boxes.tolist() == [
        *([0, 0, 2, 4], [2, 0, 4, 4], [4, 0, 6, 4], [6, 0, 8, 4]),
        [2, 0, 6, 4],  # .9 of their histograms in common
        [0, 0, 6, 4],  # both ends have .15 in common with the middle now: the first comes first
        [0, 0, 8, 4],
    ]


def test_histograms_of_a_union_are_weighted_by_size():
    # 0 and 1 are joined first. Weighted, the union has .25 of colour A, .2 of it in common with 2; 2 and 3 have .1.
    start = regions([[1, 0, 0], [0.9, 0.1, 0], [0.2, 0, 0.8], [0, 0.9, 0.1]], sizes=(0.1, 0.5, 0.2, 0.2))
    assert group(start, "c")[4:].tolist() == [[0, 0, 4, 4], [0, 0, 6, 4], [0, 0, 8, 4]]
    assert start.colours[0].tolist() == [1, 0, 0]  # what it began with is left as it was


def test_size_joins_the_smallest_and_fill_the_most_compact():
    same = [[1, 0]] * 4
    assert group(regions(same, sizes=(0.4, 0.1, 0.3, 0.2)), "s")[4].tolist() == [2, 0, 6, 4]  # .4 together
    holes = regions(same)
    holes = holes._replace(sizes=np.array([0.25, 0.25, 0.1, 0.25]))  # 2 does not fill its box
    assert group(holes, "f")[4].tolist() == [0, 0, 4, 4]


@pytest.mark.parametrize("space", ["hsv", "lab", "rgb", "gray"])
def test_colour_spaces_go_from_0_to_1(space):
    channels = in_colour(noise(), space)
    assert channels.dtype == np.float32 and channels.shape[:2] == (30, 40)
    assert 0 <= channels.min() < 0.2 and 0.5 < channels.max() <= 1


def test_objects_are_found_by_a_proposal():
    search = SelectiveSearch(cache=None, width=None, scales=[50])
    best = []
    for seed in range(4):
        image, _, masks = draw(np.random.default_rng(seed), 96)
        boxes = search.search(image)
        assert boxes.dtype == np.float32 and len(np.unique(boxes, axis=0)) == len(boxes)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 20).all()
        for mask in masks:
            rows, columns = np.nonzero(mask)
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            wide = np.minimum(x2, boxes[:, 2]) - np.maximum(x1, boxes[:, 0])
            high = np.minimum(y2, boxes[:, 3]) - np.maximum(y1, boxes[:, 1])
            both = np.clip(wide, 0, None) * np.clip(high, 0, None)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (x2 - x1) * (y2 - y1)
            best.append((both / (areas - both)).max())
    assert len(best) > 5 and np.mean(np.array(best) > 0.7) > 0.9


def test_a_search_depends_on_nothing_but_the_picture_and_scales_its_boxes_back():
    image = draw(np.random.default_rng(1), 96)[0]
    search = SelectiveSearch(cache=None, width=64, scales=[50], min_side=8, max_boxes=10)
    first, second = search.search(image), search.search(image)
    np.testing.assert_array_equal(first, second)
    assert len(first) == 10
    assert (first[:, 2] <= image.shape[1]).all() and first[:, 2].max() > 64  # in pixels of the picture itself


def test_a_plain_picture_is_one_region():
    boxes = SelectiveSearch(cache=None, width=None).search(np.full((30, 40, 3), 9, np.uint8))
    assert boxes.tolist() == [[0, 0, 40, 30]]


def test_a_source_is_known_by_its_description():
    search = SelectiveSearch(cache="x", width=None, scales=[30], colours=["rgb"])
    again = known_source(search.description())
    assert again.settings == search.settings and again.cache is None
    with pytest.raises(UserError, match="'Grid'"):
        known_source(Grid().description())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colours": ["cmyk"]}, "hsv, lab, rgb, gray"),
        ({"similarities": ["ctx"]}, "similarities"),
        ({"colours": []}, "at least one"),
        ({"scales": []}, "scales must be at least 1"),
        ({"width": 0.5}, "width must be at least 1"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SelectiveSearch(**options)


# ---- the cache


def test_a_picture_is_searched_once_until_it_changes(tmp_path):
    source = Grid(cache=str(tmp_path))
    image = noise()
    np.testing.assert_array_equal(source.boxes(image), source.boxes(image.copy()))
    assert source.searches == 1
    again = Grid(cache=str(tmp_path))
    again.boxes(image)
    assert again.searches == 0
    image[0, 0, 0] ^= 1  # the slightest change
    again.boxes(image)
    assert again.searches == 1


def test_pictures_of_other_shapes_and_settings_are_apart(tmp_path):
    source = Grid(cache=str(tmp_path))
    assert source.boxes(noise(30, 40))[0].tolist() == [0, 0, 20, 15]
    assert source.boxes(noise(30, 40).reshape(40, 30, 3))[0].tolist() == [0, 0, 15, 20]  # the same bytes
    assert len(Grid(cache=str(tmp_path), parts=3).boxes(noise(30, 40))) == 9


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = Grid()
    source.boxes(noise())
    source.boxes(noise())
    source.prepare([], [], "f")
    assert source.searches == 2 and not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    source = Grid(cache=str(tmp_path))
    source.boxes(noise())
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{file.name}.*delete the file"):
        source.boxes(noise())


def test_a_search_that_fails_leaves_no_file(tmp_path, monkeypatch):
    source = Grid(cache=str(tmp_path))
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"No space left on device.*--data\.proposals\.cache"):
        source.boxes(noise())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = Grid(cache=str(tmp_path / "file"))
    for use in (lambda: source.boxes(noise()), lambda: source.prepare([], [], "f")):
        with pytest.raises(UserError, match="proposals cannot be kept there"):
            use()


def test_preparation_goes_on_where_it_ended_and_is_remembered(tmp_path):
    files = [str(picture(tmp_path / f"{i}.png", seed=i)) for i in range(4)]
    sizes = [(30, 40)] * 4
    cache = str(tmp_path / "cache")
    first = Grid(cache=cache)
    first.prepare(files[:2], sizes[:2], "part")
    assert first.searches == 2
    second = Grid(cache=cache)
    second.prepare(files, sizes, "whole")
    assert second.searches == 2  # the other two
    third = Grid(cache=cache)
    os.remove(files[0])  # not even looked at
    third.prepare(files, sizes, "whole")
    assert third.searches == 0


def test_processes_share_the_preparation(tmp_path):
    files = [str(picture(tmp_path / f"{i}.png", seed=i)) for i in range(5)]
    shares = [Grid(cache=str(tmp_path / "cache")) for _ in range(2)]
    for rank, source in enumerate(shares):
        source.prepare(files, [(30, 40)] * 5, "f", rank=rank, world=2)
    assert [source.searches for source in shares] == [3, 2]
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 5


def test_workers_find_what_one_process_finds(tmp_path):
    files = [str(picture(tmp_path / f"{i}.png", seed=i)) for i in range(3)]
    Grid(cache=str(tmp_path / "cache"), workers=2).prepare(files, [(30, 40)] * 3, "f")
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3


def test_an_unreadable_picture_is_left_to_the_dataset(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    good = str(picture(tmp_path / "good.png"))
    source = Grid(cache=str(tmp_path / "cache"))
    source.prepare([str(tmp_path / "bad.png"), good], [(30, 40)] * 2, "f")
    assert source.searches == 1


# ---- in the data


def shapes(tmp_path, proposals, **options):
    common = {"root": str(tmp_path / "data"), "train_images": 6, "val_images": 2, "test_images": 0, "picture_size": 64}
    return ShapesDetection(**{**common, "image_size": 48, "batch_size": 3, "proposals": proposals, **options})


class Objects(Grid):
    """Proposes what it is told to; here the boxes of the objects, so that both can be compared."""

    def search(self, image):
        return self.found[image.tobytes()]


@pytest.mark.parametrize("augmentation", ["none", "flip", "efficientdet_mild", "efficientdet", "mosaic", "yolo"])
def test_proposals_follow_the_picture_exactly_as_objects_do(tmp_path, augmentation):
    source = Objects()
    data = shapes(tmp_path, source, augmentation=augmentation)
    plain = shapes(tmp_path, None).dataset("train", augmented=False)
    source.found = {image.tobytes(): objects["boxes"] for image, objects in (plain.load(i) for i in range(6))}
    without = shapes(tmp_path, None, augmentation=augmentation).dataset("train", augmented=True)
    dataset = data.dataset("train", augmented=True)
    moved = 0
    for epoch in range(3):
        for index in range(6):
            sample, other = dataset[(epoch, index)], without[(epoch, index)]
            assert torch.equal(sample["image"], other["image"]) and torch.equal(sample["boxes"], other["boxes"])
            assert torch.equal(sample["labels"], other["labels"])
            assert torch.equal(sample["proposals"], sample["boxes"])
            moved += len(sample["proposals"])
    assert moved > 20


def test_proposals_are_padded_and_masked():
    def sample(index, count):
        boxes = np.arange(4 * (count + 1), dtype=np.float32).reshape(-1, 4)
        labels = np.array([2] + [PROPOSAL] * count)
        done = Transformed(np.zeros((8, 8, 3), np.uint8), boxes, np.arange(len(boxes)), (8, 8), (1.0, 1.0))
        return as_sample(index, done, (8, 8), labels, np.zeros(len(boxes), bool), proposals=True)

    batch = collate_detection([sample(0, 3), sample(1, 9)])
    assert batch["proposals"].shape == (2, 16, 4)
    assert batch["proposals_valid"].sum(1).tolist() == [3, 9]
    assert batch["proposals"][0, :4].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [0, 0, 0, 0]]
    assert batch["targets"]["labels"][:, :2].tolist() == [[2, -1], [2, -1]]
    assert "proposals" not in collate_detection([{k: v for k, v in sample(0, 1).items() if k != "proposals"}])


def test_objects_keep_their_place_before_proposals():
    objects = {"boxes": np.ones((1, 4), np.float32), "labels": np.array([3]), "iscrowd": np.array([True])}
    joined = with_proposals(objects, np.zeros((2, 4)))
    assert joined["labels"].tolist() == [3, PROPOSAL, PROPOSAL] and joined["boxes"].dtype == np.float32
    assert joined["iscrowd"].tolist() == [True, False, False] and len(objects["labels"]) == 1


def test_batches_of_training_evaluation_and_prediction_have_proposals(tmp_path):
    source = Grid(cache=str(tmp_path / "cache"))
    data = shapes(tmp_path, source, augmentation="flip", images=str(tmp_path / "data"))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        assert batch["proposals_valid"].sum(1).tolist() == [4] * len(batch["image"])
        height, width = batch["image_size"][0].tolist()
        assert sorted(batch["proposals"][0, :4].tolist())[0] == [0, 0, width / 2, height / 2]
    assert source.searches == 8  # every picture once
    assert data.description()["proposals"] == {"kind": "Grid", "settings": {"parts": 2}}
    assert "proposals" not in shapes(tmp_path, None).description()


def test_an_augmentation_that_looks_at_boxes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'ssd', which does not carry data\.proposals along"):
        shapes(tmp_path, Grid(), augmentation="ssd")
