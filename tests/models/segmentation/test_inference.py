"""Windows and scales against scores that are known everywhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from models.segmentation.inference import MultiScale, Sliding, Whole
from models.segmentation.segmenter import Segmenter


class Pointwise(Segmenter):
    """Every pixel is scored by itself, so that no window changes a score."""

    def __init__(self):
        super().__init__(num_classes=4, image_size=32)
        self.conv = nn.Conv2d(3, 4, 1)
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        return {"out": self.conv(images)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Pointwise().eval()


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(50, 70), (20, 20), (15, 31), (20, 21)])
def test_windows_cover_the_picture(network, height, width):
    images = torch.randn(2, 3, height, width)
    found = Sliding(window=20, stride=13)(network, images)
    assert torch.allclose(found, Whole()(network, images), atol=1e-6)


@torch.no_grad()
def test_windows_are_whole_and_the_last_is_moved_back(network):
    assert Sliding(window=20, stride=13).starts(50) == [0, 13, 26, 30]
    assert Sliding(window=20, stride=20).starts(40) == [0, 20]
    assert Sliding(window=20, stride=20).starts(7) == [0]
    Sliding(window=20, stride=13)(network, torch.zeros(1, 3, 33, 20))
    assert network.seen == [(20, 20), (20, 20)]
    with pytest.raises(UserError, match="window of 20 pixels cannot slide by 21"):
        Sliding(window=20, stride=21)


@torch.no_grad()
def test_overlapping_windows_are_averaged():
    class Count(Segmenter):
        """Scores how often it was called."""

        calls = 0

        def forward(self, images):
            self.calls += 1
            return {"out": torch.full((1, 1, *images.shape[-2:]), float(self.calls))}

    scores = Sliding(window=4, stride=2)(Count(num_classes=1, image_size=4), torch.zeros(1, 3, 4, 6))
    assert scores[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]


@torch.no_grad()
def test_one_scale_is_the_softmax_of_the_picture(network):
    images = torch.randn(1, 3, 24, 30)
    expected = Whole()(network, images).softmax(1)
    assert torch.allclose(MultiScale(scales=(1.0,), flip=False)(network, images), expected, atol=1e-6)
    assert torch.allclose(MultiScale(scales=(1.0,), flip=True)(network, images), expected, atol=1e-6)


@torch.no_grad()
def test_scales_are_averaged_at_the_pictures_size(network):
    images = torch.randn(1, 3, 24, 30)
    found = MultiScale(scales=(0.5, 1.0), flip=False)(network, images)
    half = F.interpolate(network.conv(F.interpolate(images, (12, 15), mode="bilinear")), (24, 30), mode="bilinear")
    assert torch.allclose(found, (half.softmax(1) + network.conv(images).softmax(1)) / 2, atol=1e-6)
    assert network.seen == [(12, 15), (24, 30)]


@torch.no_grad()
def test_scores_at_hand_are_not_computed_again(network):
    out = torch.randn(1, 4, 8, 8)
    assert torch.equal(Whole()(network, torch.zeros(1, 3, 8, 8), out), out)
    assert network.seen == []
