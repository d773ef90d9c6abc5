"""R-CNN and SPPNet: how regions are cut, pooled, sampled and scored."""

from functools import partial

import pytest
import torch

from errors import UserError
from models.backbones.classic import ZF5, AlexNet
from models.detection.matcher import IGNORED, NEGATIVE
from models.detection.regions.rcnn import RCNN
from models.detection.regions.spatial_pyramid import best_scale, pyramid_pool, response_cells
from models.detection.regions.sppnet import SPPNet
from models.detection.regions.warp import warp, with_context
from models.detection.roi.box_heads import TwoFCHead
from tests.models.historic_cases import batch, found, overfit, run


def rcnn(**changes):
    torch.manual_seed(0)
    options = {"warp_size": 67, "context": 5, "backbone": AlexNet(width=0.1), "box_head": partial(TwoFCHead, width=32)}
    return RCNN(num_classes=3, **{**options, **changes})


def sppnet(**changes):
    torch.manual_seed(0)
    options = {
        "backbone": ZF5(width=0.1),
        "scales": (96, 128),
        "region_side": 48,
        "box_head": partial(TwoFCHead, width=32),
    }
    return SPPNet(num_classes=3, **{**options, **changes})


# ---- R-CNN's warp


def test_the_box_fills_the_square_but_for_its_context():
    # 195 of 227 pixels are the box: 195 x 390 pixels grow by 16 and by 32 on every side.
    boxes = torch.tensor([[100.0, 200.0, 295.0, 590.0]])
    assert with_context(boxes, 227, 16).tolist() == [[84, 168, 311, 622]]
    assert with_context(boxes, 227, 0).tolist() == boxes.tolist()
    assert with_context(torch.tensor([[5.2, 5.2, 5.3, 5.3]]), 227, 16).tolist() == [[5, 5, 6, 6]]  # a pixel at least


def test_a_region_as_large_as_the_square_is_copied():
    images = torch.arange(2 * 3 * 40 * 50, dtype=torch.float32).view(2, 3, 40, 50)
    size = torch.tensor([[40, 50], [40, 50]])
    crop = warp(images, torch.tensor([1]), torch.tensor([[12.0, 7.0, 32.0, 27.0]]), size, size=28, context=4)
    assert torch.equal(crop[0], images[1, :, 3:31, 8:36])


def test_warping_is_the_bilinear_resize_of_both_axes_on_their_own():
    images = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[60, 60]])
    crop = warp(images, torch.tensor([0]), torch.tensor([[10.0, 20.0, 24.0, 50.0]]), size, size=21, context=0)
    # Away from the region's edge, where the crop's neighbours are seen by one and not by the other.
    want = torch.nn.functional.interpolate(images[:, :, 20:50, 10:24], size=(21, 21), mode="bilinear")
    torch.testing.assert_close(crop[:, :, 2:-2, 2:-2], want[:, :, 2:-2, 2:-2])


def test_beyond_the_picture_is_the_mean_also_within_a_padded_batch():
    images = torch.ones(1, 3, 40, 40)
    size = torch.tensor([[30, 20]])  # what follows is padding, which must not be seen
    boxes = torch.tensor([[-4.0, -4.0, 16.0, 16.0], [10.0, 20.0, 30.0, 40.0]])
    first, second = warp(images, torch.tensor([0, 0]), boxes, size, size=20, context=0)
    assert first[:, 4:, 4:].eq(1).all() and first[:, :4].eq(0).all() and first[:, :, :4].eq(0).all()
    assert second[:, :10, :10].eq(1).all() and second[:, 10:].eq(0).all() and second[:, :, 10:].eq(0).all()


def test_the_papers_network_reads_227_pixels():
    with torch.device("meta"):
        network = RCNN(num_classes=20)
        parameters = sum(p.numel() for p in network.parameters())
        assert network.box_head.fc1.in_features == 9216
    assert parameters == 61_100_840 - 4_097_000 + 4097 * 21  # AlexNet with another last layer
    assert (network.sampler.size, network.sampler.max_positives) == (128, 32)
    assert (network.warp_size, network.context, network.postprocessor.nms.iou_threshold) == (227, 16, 0.3)
    assert network.ridge_weight.shape == (20, 4, 9216) and network.svm_weight.shape == (20, 4096)


# ---- SPPNet's pyramid


def test_cells_whose_centres_lie_within():
    boxes = torch.tensor(
        [
            [16.0, 0.0, 65.0, 48.0],  # from 16 to 64: the cells strictly between 1 and 4; from 0 to 47: 1 and 2
            [17.0, 33.0, 33.0, 64.0],  # 17 to 32: none strictly within, the middle is nearest to cell 2
            [150.0, 150.0, 400.0, 400.0],  # beyond the feature
        ]
    )
    assert response_cells(boxes, 16, 0.0, 9, 9).tolist() == [[2, 1, 3, 2], [2, 3, 2, 3], [8, 8, 8, 8]]
    shifted = response_cells(boxes[:1] + 7.5, 16, 7.5, 9, 9)
    assert shifted.tolist() == [[2, 1, 3, 2]]


def test_bins_cover_the_cells_that_the_paper_says():
    feature = torch.arange(9 * 9, dtype=torch.float32).view(1, 1, 9, 9)
    cells = torch.tensor([[1, 2, 5, 4]])  # 5 wide, 3 high
    found = pyramid_pool(feature, cells, (1, 2, 3))[0].tolist()
    # Columns of level 2: floor(0) to ceil(2.5), floor(2.5) to 5; of level 3: 0 to 2, 1 to 4, 3 to 5. The last wins.
    assert found[0] == 4 * 9 + 5
    assert found[1:5] == [3 * 9 + 3, 3 * 9 + 5, 4 * 9 + 3, 4 * 9 + 5]
    assert found[5:] == [9 * y + x for y in (2, 3, 4) for x in (2, 4, 5)]


def test_the_pyramid_has_fifty_bins_ordered_by_level():
    feature = torch.rand(1, 4, 7, 7)
    pooled = pyramid_pool(feature, torch.tensor([[0, 0, 6, 6], [3, 3, 3, 3]]))
    assert pooled.shape == (2, 4 * 50)
    torch.testing.assert_close(pooled[0, :4], feature[0].amax((1, 2)))
    torch.testing.assert_close(pooled[1, 4:20], feature[0, :, 3, 3].repeat_interleave(4))  # one cell in every bin


def test_the_scale_that_makes_a_region_224_squared():
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 200.0, 200.0], [0.0, 0.0, 400.0, 50.0]])
    factors = torch.tensor([[1.0, 1.5, 2.0]]).expand(3, -1)
    assert best_scale(boxes, factors).tolist() == [2, 0, 1]


def test_regions_are_pooled_from_their_scale_and_picture():
    network = sppnet().eval()
    images, image_size, _, _ = batch()
    outputs = network(network.preprocess(images, image_size))
    image = torch.tensor([1, 0, 1])
    boxes = torch.tensor([[4.0, 4.0, 70.0, 60.0], [10.0, 10.0, 40.0, 40.0], [10.0, 10.0, 40.0, 40.0]])
    pooled = network.pool(outputs, image, boxes, image_size).flatten(1)
    features = network.features(outputs, image_size)
    assert [list(maps) for maps in features] == [[96, 128]] * 2
    # 66 x 56 pixels are too large at either scale: the smaller one is nearer. 30 x 30 pixels become 40 x 40 at 128 / 96
    # in the picture 96 pixels wide, 48 x 48 at 128 / 80 in the other.
    for row, (i, scale, factor) in enumerate([(1, 96, 96 / 80), (0, 128, 128 / 96), (1, 128, 128 / 80)]):
        cells = response_cells(boxes[[row]] * factor, 16, 0.0, *features[i][scale].shape[-2:])
        torch.testing.assert_close(pooled[row], pyramid_pool(features[i][scale], cells)[0])
    assert features[1][96].shape[-2:] == network.backbone(torch.zeros(1, 3, 115, 96))[0].shape[-2:]


def test_one_scale_is_drawn_in_training():
    network = sppnet().train()
    images, image_size, _, _ = batch()
    seen = {tuple(network.features(network(images.float()), image_size)[0]) for _ in range(12)}
    assert seen == {(96,), (128,)}


def test_the_papers_sppnet_trains_its_fully_connected_layers_alone():
    with torch.device("meta"):
        network = SPPNet(num_classes=20)
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert learned == (12_800 + 1) * 4096 + 4097 * 4096 + 4097 * 21
    assert network.scales == (480, 576, 688, 864, 1200) and network.region_side == 224
    assert network.min_negative_iou == 0.1


# ---- both


@pytest.mark.parametrize("make", [rcnn, sppnet])
def test_it_learns_a_batch(make):
    network = make()
    losses = overfit(network, steps=30, lr=3e-3)
    assert min(losses[-5:]) < 0.35 * losses[0]
    assert found(network) == 4


@pytest.mark.parametrize("make", [rcnn, sppnet])
def test_loss_and_detections_of_a_picture_do_not_depend_on_the_batch(make):
    network = make().eval()
    images, image_size, targets, (boxes, valid) = batch()
    outputs = run(network, images, image_size, (boxes, valid))
    together = network.loss_terms(outputs, targets, image_size)["class_loss"]
    detections = network.detect(outputs, image_size)
    for i in range(2):
        one = {key: value[i : i + 1] for key, value in targets.items()}
        outputs = run(network, images[i : i + 1], image_size[i : i + 1], (boxes[i : i + 1], valid[i : i + 1]))
        term = network.loss_terms(outputs, one, image_size[i : i + 1])["class_loss"]
        torch.testing.assert_close(term.numerator[0], together.numerator[i], rtol=1e-4, atol=1e-5)
        assert term.denominator[0] == together.denominator[i] > 8
        scores = network.detect(outputs, image_size[i : i + 1])["scores"][0]
        torch.testing.assert_close(scores, detections["scores"][i], rtol=1e-4, atol=1e-6)


def test_regions_are_assigned_to_classes():
    network = rcnn(min_negative_iou=0.1)
    targets = {
        "boxes": torch.tensor([[[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 0.0, 0.0]]]),
        "labels": torch.tensor([[2, 1, -1]]),
        "iscrowd": torch.tensor([[False, True, False]]),
    }
    boxes = torch.tensor([[[0.0, 0, 10, 20], [0.0, 0, 10, 21], [0, 0, 10, 101], [50, 50, 60, 60], [0, 0, 10, 10]]])
    valid = torch.tensor([[True, True, True, True, False]])
    assert network.assign(boxes, valid, targets).tolist() == [[2, NEGATIVE, IGNORED, IGNORED, IGNORED]]


def test_a_training_batch_is_drawn_from_all_pictures_together():
    network = rcnn().train()
    images, image_size, targets, proposals = batch()
    targets["labels"][0] = -1  # no positive there
    term = network.loss_terms(run(network, images, image_size, proposals), targets, image_size)["class_loss"]
    assert term.denominator.sum() == 40 + 36 + 2  # all of both pictures, and the two objects of the second
    network.sampler.size, network.sampler.max_positives = 16, 4
    term = network.loss_terms(run(network, images, image_size, proposals), targets, image_size)["class_loss"]
    assert term.denominator.sum() == 16 and term.denominator[1] >= 4


@pytest.mark.parametrize("make", [rcnn, sppnet])
def test_svms_and_regressions_take_over(make):
    network = make().eval()
    images, image_size, _, (boxes, valid) = batch()
    size = network.ridge_weight.shape[2]
    state = {
        "svm_weight": torch.zeros(3, 32),
        "svm_bias": torch.tensor([-20.0, 0.5, -20.0]),
        "ridge_weight": torch.zeros(3, 4, size),
        "ridge_bias": torch.tensor([[0.0] * 4, [0.25, 0.0, 0.0, 0.0], [0.0] * 4]),
    }
    assert network.svm_fitted == 0
    network.set_stage(state)
    few = boxes[:, :1], valid[:, :1]
    detections = network.detect(run(network, images, image_size, few), image_size)
    assert detections["labels"][:, 0].tolist() == [1, 1] and (detections["labels"][:, 1:] == -1).all()
    torch.testing.assert_close(detections["scores"][:, 0], torch.full((2,), 1.0).sigmoid())  # 2 * .5
    width = boxes[0, 0, 2] - boxes[0, 0, 0]
    moved = boxes[0, 0] + torch.tensor([width / 4, 0, width / 4, 0])  # by a quarter of its width
    torch.testing.assert_close(detections["boxes"][0, 0], moved.clamp(max=96), atol=1e-4, rtol=0)
    # They travel with the weights.
    again = make().eval()
    again.load_state_dict(network.state_dict())
    assert again.svm_fitted == 1 and torch.equal(again.svm_bias, state["svm_bias"])
    assert not any("svm" in name or "ridge" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("make", [rcnn, sppnet])
def test_pictures_without_proposals_or_objects(make):
    network = make()
    images, image_size, targets, (boxes, valid) = batch()
    targets["labels"][:] = -1
    nothing = (boxes, torch.zeros_like(valid))
    for mode in (True, False):
        network.train(mode)
        outputs = run(network, images, image_size, nothing)
        loss = network.loss_terms(outputs, targets, image_size)["class_loss"].value()
        assert loss == 0
    assert (network.detect(outputs, image_size)["labels"] == -1).all()


def test_without_proposals_the_remedy_is_named():
    network = rcnn()
    images, image_size, targets, _ = batch()
    with pytest.raises(UserError, match=r"set data\.proposals"):
        network.loss_terms(network(images.float()), targets, image_size)


def test_classes_can_be_exchanged():
    network = sppnet()
    assert all(network.state_dict()[name].shape[0] == 3 for name in network.class_parameters())
