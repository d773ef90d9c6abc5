import json

import numpy as np
import pytest

from datamodules.annotations import DetectionAnnotations
from tests.helpers import D0, SMALL
from tools.anchor_clusters import best_clusters, box_shapes, clusters, first_centroids, main, overlaps


def test_overlaps_by_hand():
    result = overlaps(np.array([[4.0, 2], [2, 2]]), np.array([[2.0, 4], [4, 2], [1, 1]]))
    np.testing.assert_allclose(result, [[4 / 12, 1, 1 / 8], [4 / 8, 4 / 8, 1 / 4]])


def test_nearest_is_by_overlap_not_by_distance():
    # 20 x 20 is 14 away from 10 x 10 and 28 from 40 x 40, but covers a quarter of either; 21 x 21 is for the larger.
    centroids = clusters(np.array([[21.0, 21], [10, 10], [40, 40]]), np.array([[10.0, 10], [40, 40]]), rounds=1)
    np.testing.assert_allclose(centroids, [[10, 10], [30.5, 30.5]])


def test_empty_cluster_stays():
    centroids = clusters(np.array([[10.0, 10], [12, 12]]), np.array([[11.0, 11], [500, 2]]))
    np.testing.assert_allclose(centroids, [[11, 11], [500, 2]])


def test_clear_clusters_are_found():
    rng = np.random.default_rng(0)
    centres = np.array([[10, 20], [60, 30], [100, 200.0]])
    shapes = np.concatenate([centre * rng.uniform(0.95, 1.05, (50, 2)) for centre in centres])
    found, overlap = best_clusters(shapes, 3, 3, rng)
    np.testing.assert_allclose(found, centres, rtol=0.02)
    assert overlap == pytest.approx(overlaps(shapes, found).max(1).mean())
    assert overlap > 0.93
    assert overlap > best_clusters(shapes, 2, 3, rng)[1] + 0.1


def test_first_centroids_differ():
    shapes = np.array([[1.0, 1]] * 50 + [[1, 9.0], [9, 1.0]])
    assert len(np.unique(first_centroids(shapes, 3, np.random.default_rng(0)), axis=0)) == 3


def test_shapes_of_boxes_in_the_resized_picture():
    """A picture of 40 x 20 pixels, one of 10 x 30, and a crowd."""
    annotations = DetectionAnnotations.from_lists(
        images=[("a.jpg", 1, 20, 40), ("b.jpg", 2, 30, 10)],
        image_index=[0, 1, 1],
        objects={
            "boxes": [[0, 0, 10, 10], [0, 0, 5, 15], [0, 0, 9, 9]], "labels": [0] * 3, "area": [1] * 3,
            "iscrowd": [0, 0, 1], "difficult": [0] * 3, "annotation_ids": [1, 2, 3],
        },
        class_names=["a"],
        category_ids=[1],
    )  # fmt: skip
    np.testing.assert_allclose(box_shapes(annotations, 60), [[15, 15], [10, 30]])
    np.testing.assert_allclose(box_shapes(annotations, 60, "stretch"), [[15, 30], [30, 30]])


def run(capsys, *options):
    assert main(["--config", D0, *SMALL, "--data.image_size=64", *options]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    return first, np.array(json.loads(second.removeprefix("priors: ")))


def test_command(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    said, pixels = run(capsys, "--clusters=3")
    assert "3 clusters of" in said and "train split of shapes at 64 pixels" in said
    assert pixels.shape == (3, 2)
    assert (np.diff(pixels.prod(1)) > 0).all() and pixels.max() < 64
    np.testing.assert_allclose(run(capsys, "--clusters=3", "--unit=32")[1], pixels / 32, rtol=1e-3)
    np.testing.assert_allclose(run(capsys, "--clusters=3", "--data.image_size=128")[1], pixels * 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [("--clusters=0", "--clusters is 0"), ("--unit=-1", "--unit is -1"), ("--clusters=500", "different shapes")],
)
def test_mistakes(trained, monkeypatch, capsys, mistake, message):
    monkeypatch.chdir(trained.parent)
    assert main(["--config", D0, *SMALL, mistake]) == 2
    assert message in capsys.readouterr().err
