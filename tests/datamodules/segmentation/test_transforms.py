import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.randomness import sample_rng
from datamodules.segmentation.transforms import (
    TransformedPair,
    flip,
    flipped,
    resize_labels,
    resize_short,
    scale_crop,
    whole,
)


@pytest.fixture
def pair():
    """A smooth picture whose labels are its red channel's upper bits: both must stay together."""
    image = cv2.resize(np.random.default_rng(0).uniform(0, 255, (6, 8, 3)), (80, 60), interpolation=cv2.INTER_LINEAR)
    image = image.astype(np.uint8)
    return image, (image[..., 0] >= 128).astype(np.uint8)


def agreement(done):
    """The share of pixels within the picture where the labels are what the transformed picture says."""
    height, width = done.size
    red = done.image[:height, :width, 0]
    return ((red >= 128) == done.mask[:height, :width]).mean()


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((375, 500, 3), 520, (520, 693)),  # 520 * 500 / 375 = 693.3
        ((500, 375, 3), 520, (693, 520)),
        ((333, 500, 3), 520, (520, 780)),  # 780.8, rounded down as torchvision does
        ((40, 40, 3), 10, (10, 10)),
        ((1, 50, 3), 3, (3, 150)),
        ((40, 30, 3), None, (40, 30)),
    ],
)
def test_the_shorter_side_is_resized(shape, side, expected):
    assert resize_short(np.zeros(shape, np.uint8), side).shape == (*expected, 3)


def test_resized_as_torchvision_does(pair):
    functional = pytest.importorskip("torchvision.transforms.functional")
    for side in (90, 41):
        theirs = functional.resize(Image.fromarray(pair[0]), side, interpolation=functional.InterpolationMode.BILINEAR)
        ours = resize_short(pair[0], side)
        assert ours.shape == np.asarray(theirs).shape
        assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 4
        masks = functional.resize(Image.fromarray(pair[1]), side, interpolation=functional.InterpolationMode.NEAREST)
        np.testing.assert_array_equal(resize_labels(pair[1], *ours.shape[:2]), np.asarray(masks))


def test_shrinking_takes_means():
    stripes = np.tile(np.array([0, 200], np.uint8), (8, 4))[..., None].repeat(3, 2)
    assert (resize_short(stripes, 4) == 100).all()


def test_labels_are_never_mixed_and_do_not_move(pair):
    labels = np.random.default_rng(1).choice(np.array([0, 7, 20, 255], np.uint8), (31, 17))
    for size in ((62, 34), (13, 40), (7, 5), (31, 17)):
        resized = resize_labels(labels, *size)
        assert resized.shape == size and set(np.unique(resized)) <= {0, 7, 20, 255}
    mirrored = resize_labels(labels[:, ::-1].copy(), 31, 51)  # with OpenCV's plain nearest this is not symmetric
    np.testing.assert_array_equal(mirrored[:, ::-1], resize_labels(labels, 31, 51))
    assert resize_labels(np.array([[1, 2, 3]], np.uint8), 1, 9).tolist() == [[1, 1, 1, 2, 2, 2, 3, 3, 3]]
    assert resize_labels(np.array([[1, 2, 3, 4, 5, 6]], np.uint8), 1, 2).tolist() == [[2, 5]]


def test_flip_leaves_padding_at_the_right():
    image = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    done = TransformedPair(image, np.array([[1, 2, 255, 255]], np.uint8), (1, 2))
    results = [flip(done, np.random.default_rng(seed)) for seed in range(20)]
    masks = {tuple(result.mask[0].tolist()) for result in results}
    assert masks == {(1, 2, 255, 255), (2, 1, 255, 255)}
    for result in results:
        turned = result.mask[0, 0] == 2
        assert result.image[0, :2, 0].tolist() == ([3, 0] if turned else [0, 3])
        assert result.image[0, 2:, 0].tolist() == [6, 9] and result.size == (1, 2)
    assert done.mask.tolist() == [[1, 2, 255, 255]]


def test_whole_and_flipped(pair):
    done = whole(*pair, np.random.default_rng(0), side=45)
    assert done.image.shape == (45, 60, 3) and done.mask.shape == (45, 60) and done.size == (45, 60)
    assert agreement(done) > 0.97
    same = whole(*pair, np.random.default_rng(0), side=None)
    np.testing.assert_array_equal(same.mask, pair[1])
    mirrored = [flipped(*pair, np.random.default_rng(seed), side=None) for seed in range(20)]
    assert {bool((m.mask == pair[1]).all()) for m in mirrored} == {True, False}
    assert all(agreement(m) == 1 for m in mirrored)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("side", "crop"), [(None, 64), (52, 48), (30, 100)])
def test_scale_crop_keeps_picture_and_mask_together(pair, side, crop, seed):
    done = scale_crop(*pair, np.random.default_rng(seed), side=side, crop=crop, scale_range=(0.5, 2.0))
    height, width = done.size
    assert done.image.shape == (crop, crop, 3) and done.mask.shape == (crop, crop)
    assert 0 < height <= crop and 0 < width <= crop
    assert agreement(done) > 0.95
    for outside in (done.image[height:], done.image[:, width:]):
        assert not outside.any()
    assert (done.mask[height:] == 255).all() and (done.mask[:, width:] == 255).all()
    assert done.mask[:height, :width].max() <= 1


def test_scale_crop_scales_as_it_says(pair):
    """With a crop that everything fits into, the size of the picture is the factor drawn."""
    options = {"side": 30, "crop": 120}
    sizes = np.array(
        [scale_crop(*pair, sample_rng(0, 0, i), scale_range=(0.5, 2.0), **options).size for i in range(300)]
    )
    np.testing.assert_allclose(sizes[:, 1] / sizes[:, 0], 80 / 60, rtol=0.05)
    assert sizes[:, 0].min() in (15, 16) and sizes[:, 0].max() in (59, 60)
    assert abs(sizes[:, 0].mean() - 37.5) < 2  # evenly between 15 and 60
    assert scale_crop(*pair, sample_rng(0, 0, 0), scale_range=(1.0, 1.0), **options).size == (30, 40)


def test_scale_crop_reaches_every_place():
    places = np.arange(9, dtype=np.uint8).reshape(3, 3)
    image = np.zeros((3, 3, 3), np.uint8)
    crops = [scale_crop(image, places, sample_rng(0, 0, i), side=None, crop=2, scale_range=(1, 1)) for i in range(60)]
    found = {tuple(done.mask.ravel().tolist()) for done in crops}
    expected = {tuple(places[y : y + 2, x : x + 2].ravel().tolist()) for y in (0, 1) for x in (0, 1)}
    mirrored = {(b, a, d, c) for a, b, c, d in expected}
    assert found == expected | mirrored
