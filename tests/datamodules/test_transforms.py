import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.transforms import Pixels, Transformed, flip, jitter, resize_to_fit
from errors import UserError


def marked(width, height, box):
    """A black picture with a white box: after a transform the box must still be around the white."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image, np.array([box], np.float32)


def white(image):
    ys, xs = np.nonzero(image[..., 0] > 127)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def rng(seed=0):
    return np.random.default_rng(seed)


def test_resize_to_fit():
    done = resize_to_fit(*marked(200, 100, (40, 20, 120, 80)), 64)
    assert done.image.shape == (64, 64, 3) and done.size == (32, 64) and done.scale == (0.32, 0.32)
    assert not done.image[32:].any()
    np.testing.assert_allclose(done.boxes[0], [12.8, 6.4, 38.4, 25.6], rtol=1e-6)
    np.testing.assert_allclose(white(done.image), done.boxes[0], atol=1)


def test_resize_to_fit__none_leaves_the_picture():
    image, boxes = marked(50, 30, (1, 2, 9, 9))
    done = resize_to_fit(image, boxes, None)
    assert done.image is image and done.scale == (1, 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(20, 300), st.integers(20, 300), st.sampled_from([64, 96]))
def test_jitter__boxes_follow_the_pixels(seed, width, height, side):
    image, boxes = marked(width, height, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    done = flip(jitter(image, boxes, side, rng(seed), (0.5, 2.0)), rng(seed + 1))
    assert done.image.shape == (side, side, 3)
    assert not done.image[done.size[0] :].any() and not done.image[:, done.size[1] :].any()
    if len(done.boxes):
        assert (done.boxes >= 0).all() and (done.boxes[:, 2:] <= np.array(done.size[::-1])).all()
        if (done.boxes[0, 2:] - done.boxes[0, :2]).min() > 4:
            np.testing.assert_allclose(white(done.image), done.boxes[0], atol=2)


def test_jitter__keeps_the_aspect_and_the_size_that_was_drawn():
    image = np.zeros((300, 400, 3), np.uint8)
    for seed in range(30):
        factor = np.random.default_rng(seed).uniform(0.1, 2.0)
        done = jitter(image, np.array([[100, 100, 200, 200]], np.float32), 128, rng(seed))
        assert done.size == (min(round(96 * factor), 128), min(round(128 * factor), 128))
        if factor < 1:  # nothing is cut
            np.testing.assert_allclose(done.boxes[0, 2:] - done.boxes[0, :2], 32 * factor, rtol=0.06)


def test_jitter__drops_what_is_cropped_away_and_keeps_positions():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 5, 5], [40, 40, 60, 60], [95, 95, 100, 100]], np.float32)
    done = jitter(image, boxes, 50, rng(1), (2.0, 2.0))
    assert len(done.kept) == len(done.boxes) < 3


def test_jitter__frame_and_visible_share():
    """A window of 20 x 40 pixels of the enlarged picture; of a box, enough must be left."""
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 100, 100], [45, 45, 55, 55]], np.float32)
    outcomes = set()
    for seed in range(200):
        every = jitter(image, boxes, 50, rng(seed), (4.0, 4.0), frame=(20, 40))
        done = jitter(image, boxes, 50, rng(seed), (4.0, 4.0), frame=(20, 40), min_visible=0.5)
        assert every.image.shape == (20, 40, 3) and every.size == (20, 40) and 0 in every.kept
        left = (every.boxes[:, 2:] - every.boxes[:, :2]).prod(1) / np.array([200 * 200, 20 * 20])[every.kept]
        assert done.kept.tolist() == every.kept[left >= 0.5].tolist()
        outcomes.add((len(every.kept), len(done.kept)))
    assert outcomes == {(1, 0), (2, 0), (2, 1)}


def test_flip_mirrors_the_picture_and_leaves_padding():
    done = resize_to_fit(*marked(40, 80, (0, 0, 10, 80)), 80)
    flips = [flip(done, rng(seed)) for seed in range(20)]
    mirrored = [f for f in flips if f is not done]
    assert 4 <= len(mirrored) <= 16
    for f in mirrored:
        np.testing.assert_allclose(f.boxes[0], [30, 0, 40, 80])
        np.testing.assert_array_equal(white(f.image), [30, 0, 40, 80])
        assert not f.image[:, 40:].any()


def test_pixels__empty_and_odd_boxes():
    pixels = Pixels([{"class_path": "HorizontalFlip", "init_args": {"p": 1.0}}])
    image = np.zeros((30, 40, 3), np.uint8)
    for given_boxes in (np.zeros((0, 4), np.float32), np.array([[5, 5, 5, 9], [-4, 3, 60, 20]], np.float32)):
        _, boxes, positions = pixels(image, given_boxes, rng())
        assert boxes.dtype == np.float32 and boxes.shape[1] == 4 and positions.dtype == np.int64
    assert positions.tolist() == [1]
    np.testing.assert_allclose(boxes, [[0, 3, 40, 20]], atol=1e-4)


def test_pixels__draw_from_the_sample_stream_only():
    pixels = Pixels([{"class_path": "albumentations.RandomBrightnessContrast", "init_args": {"p": 1.0}}])
    image, boxes = marked(40, 30, (5, 5, 20, 20))
    first, second, third = (pixels(image, boxes, rng(seed))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"class_path": "Fliip"}, r"no transform 'Fliip'"),
        ({"class_path": "os.system", "init_args": {"command": "x"}}, r"no transform 'os.system'"),
        ({"class_path": "HorizontalFlip", "init_args": {"probability": 1}}, r"HorizontalFlip does not take"),
        ({"class_path": "RandomResizedCrop", "init_args": {"height": 10, "width": 10}}, r"RandomResizedCrop does not"),
    ],
)
def test_pixels__mistakes_are_errors(transform, message):
    with pytest.raises(UserError, match=message):
        Pixels([transform])


@pytest.mark.parametrize("name", ["Normalize", "ToFloat"])
def test_pixels__must_stay_bytes(name):
    pixels = Pixels([{"class_path": name}])
    with pytest.raises(UserError, match=r"float32 of shape \(30, 40, 3\).*leave out Normalize"):
        pixels(*marked(40, 30, (5, 5, 20, 20)), rng())


def test_resizing_far_down_does_not_alias():
    """Every second column white: a fifth of the size must be gray all over, not stripes."""
    image = np.zeros((300, 400, 3), np.uint8)
    image[:, ::2] = 255
    done = resize_to_fit(image, np.zeros((0, 4), np.float32), 80)
    assert np.abs(done.image[: done.size[0]].astype(int) - 128).max() < 40


def test_transformed_is_what_recipes_return():
    assert Transformed._fields == ("image", "boxes", "kept", "size", "scale")
