import math

import torch

from models.detection.anchors import AnchorGenerator

SIZES_512 = [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]


def test_anchors_of_d0_at_512():
    anchors = AnchorGenerator()(SIZES_512)
    assert anchors.shape == (49_104, 4)
    assert anchors.dtype == torch.float32
    root = math.sqrt(2)
    octave = 2 ** (1 / 3)
    # The first cell is centred at (4, 4); boxes of side 32, then 32 octaves up, each in ratios 1, 2, 1/2.
    expected = [
        [4 - 16, 4 - 16, 4 + 16, 4 + 16],
        [4 - 16 * root, 4 - 16 / root, 4 + 16 * root, 4 + 16 / root],
        [4 - 16 / root, 4 - 16 * root, 4 + 16 / root, 4 + 16 * root],
        [4 - 16 * octave, 4 - 16 * octave, 4 + 16 * octave, 4 + 16 * octave],
    ]
    torch.testing.assert_close(anchors[:4], torch.tensor(expected))
    side = 4 * 128 * 2 ** (2 / 3) / 2
    last = [448 - side / root, 448 - side * root, 448 + side / root, 448 + side * root]
    torch.testing.assert_close(anchors[-1], torch.tensor(last))


def test_cells_run_along_rows():
    anchors = AnchorGenerator(strides=[8], octaves=1, ratios=[1.0])([(2, 3)])
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_scale_of_d7():
    anchors = AnchorGenerator(strides=[8], scale=5)([(1, 1)])
    assert anchors[0].tolist() == [4 - 20, 4 - 20, 4 + 20, 4 + 20]


def test_anchors_are_computed_once():
    assert AnchorGenerator()(SIZES_512) is AnchorGenerator()(SIZES_512)


def test_anchors_made_in_inference_serve_training():
    with torch.inference_mode():
        anchors = AnchorGenerator(scale=3.25)([(2, 2)] * 5)
    assert not anchors.is_inference()
    assert AnchorGenerator(scale=3.25)([(2, 2)] * 5) is anchors
