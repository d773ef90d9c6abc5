"""Extraction, heads, sampling, losses and postprocessing of the second stage."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from models.detection.box_coder import BoxCoder
from models.detection.matcher import NEGATIVE
from models.detection.roi.box_heads import AdaptiveTwoFCHead, ConvFCHead, TwoFCHead
from models.detection.roi.gathered_roi_align import gathered_roi_align
from models.detection.roi.integral_roi_head import IntegralRoIHead
from models.detection.roi.roi_extractor import AllLevelsRoIExtractor, RoIExtractor
from models.detection.roi.roi_head import BoxPredictor, RoIHead, refine
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.roi.roi_training import box_losses, class_losses, sample_rois
from models.detection.sampler import RandomSampler

ALL = torch.ones(2, 40, dtype=torch.bool)


def square(side):
    return [0.0, 0, side, side]


def test_level_of_a_box():
    extractor = RoIExtractor()
    sides = [1, 56, 111.9, 112, 223.9, 224, 447, 448, 2000]
    assert extractor.levels(torch.tensor([[*map(square, sides)]])).tolist() == [[0, 0, 0, 1, 1, 2, 2, 3, 3]]
    assert extractor.levels(torch.tensor([[0.0, 0, 224 * 4, 56]])).tolist() == [2]  # by area alone
    assert extractor.levels(torch.zeros(1, 4)).tolist() == [0]  # padding
    finer = RoIExtractor(strides=(8, 16), canonical_size=56, canonical_level=4)
    assert finer.levels(torch.tensor([*map(square, [10, 27.9, 55, 56])])).tolist() == [0, 0, 0, 1]


@pytest.fixture
def pyramid():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 256 // s, 256 // s) for s in (4, 8, 16, 32, 64)]


@pytest.fixture
def boxes():
    torch.manual_seed(1)
    corner = torch.rand(2, 40, 2) * 120
    return torch.cat([corner, corner + torch.rand(2, 40, 2) * 130], 2)


def test_extraction_over_levels_against_torchvision(pyramid, boxes):
    theirs = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    boxes[0, 0] = torch.tensor(square(250.0))
    expected = theirs({str(i): x for i, x in enumerate(pyramid[:4])}, list(boxes), [(256, 256)] * 2)
    found = RoIExtractor(sampling_ratio=2, aligned=False)(pyramid, boxes, ALL)
    torch.testing.assert_close(found, expected)
    assert RoIExtractor().levels(boxes).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("aligned", [False, True])
def test_gathered_roi_align_against_torchvision(pyramid, aligned):
    torch.manual_seed(3)
    features = [x.double().requires_grad_() for x in pyramid[:3]]
    corner = torch.rand(60, 2).double() * 300 - 30  # some lie beside the picture, some have no area
    image = torch.arange(60).double()[:, None] % 2
    rois = torch.cat([image, corner, corner + (torch.rand(60, 2) * 130 - 20).clamp(min=0)], 1)
    levels = torch.arange(60) % 3
    options = {"output_size": 3, "sampling_ratio": 2, "aligned": aligned}
    found = gathered_roi_align(features, rois, levels, (4, 8, 16), **options)
    expected = torch.empty_like(found)
    for level, stride in enumerate((4, 8, 16)):
        part = torchvision.ops.roi_align(features[level], rois[levels == level], 3, 1 / stride, 2, aligned)
        expected[levels == level] = part
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for got, wanted in zip(
        *(torch.autograd.grad((x * weights).sum(), features) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("method", ["align", "pool"])
def test_extraction_from_one_level(pyramid, boxes, method):
    extractor = RoIExtractor(strides=(16,), output_size=5, method=method)
    found = extractor([pyramid[2]], boxes, ALL).unflatten(0, (2, 40))
    for image in range(2):
        if method == "align":
            one = torchvision.ops.roi_align(pyramid[2][image, None], [boxes[image]], 5, 1 / 16, 0, True)
        else:
            one = torchvision.ops.roi_pool(pyramid[2][image, None], [boxes[image]], 5, 1 / 16)
        torch.testing.assert_close(found[image], one)


def test_pooling_a_linear_feature_reads_its_coordinates():
    x = (torch.arange(32).float() + 0.5).expand(32, 32) * 8  # the x coordinate of every cell's centre
    box = torch.tensor([[[40.0, 40, 104, 72]]])
    found = RoIExtractor(strides=(8,), output_size=2)([x[None, None]], box, ALL[:1, :1])
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([56.0, 88.0]))


def test_padding_goes_through_no_layer(pyramid, boxes):
    torch.manual_seed(0)
    taken = ALL.clone()
    taken[1, 25:] = False
    options = {"extractor": RoIExtractor(output_size=3), "box_head": partial(ConvFCHead, conv_channels=4, width=8)}
    head = RoIHead(3, 2, **options).train()
    logits, codes = head(pyramid, boxes, taken)
    assert logits[taken].all() and not logits[~taken].any() and not codes[~taken].any()
    # Batch normalisation has seen what is taken and nothing else.
    mean = head.box_head.convs[0](head.extractor(pyramid, boxes, taken)).mean((0, 2, 3))
    torch.testing.assert_close(head.box_head.norms[0].running_mean, 0.1 * mean)


def test_half_precision_features_keep_whole_coordinates(pyramid, boxes):
    found = RoIExtractor()([x.bfloat16() for x in pyramid], boxes, ALL)
    torch.testing.assert_close(found, RoIExtractor()([x.bfloat16().float() for x in pyramid], boxes, ALL))


def test_adaptive_pooling_takes_the_largest_of_all_levels(pyramid, boxes):
    pooled = AllLevelsRoIExtractor()(pyramid, boxes, ALL)
    assert pooled.shape == (80, 4, 3, 7, 7)
    for level, stride in enumerate((4, 8, 16, 32)):
        single = RoIExtractor(strides=(stride,))([pyramid[level]], boxes, ALL)
        torch.testing.assert_close(pooled[:, level], single)
    head = AdaptiveTwoFCHead(3, 7, width=16)
    parts = torch.stack([fc(pooled[:, i].flatten(1)).relu() for i, fc in enumerate(head.fc1)])
    torch.testing.assert_close(head(pooled), head.fc2(parts.amax(0)).relu())
    assert (parts.argmax(0).unique() == torch.arange(4)).all()  # every level has its say


@pytest.mark.parametrize(
    ("head", "parameters"),
    # detectron2's box head for an FPN, and torchvision's v2.
    [(TwoFCHead, 12_544 * 1024 + 1024 * 1024 + 2048), (ConvFCHead, 4 * (256 * 256 * 9 + 512) + 12_544 * 1024 + 1024)],
)
def test_sizes_of_box_heads(head, parameters):
    with torch.device("meta"):
        module = head(256, 7)
        assert module(torch.empty(5, 256, 7, 7)).shape == (5, module.channels) == (5, 1024)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_dropout_of_the_box_head():
    head = TwoFCHead(2, 3, width=1000, dropout=0.5)
    x = torch.rand(1, 2, 3, 3)
    assert (head(x) == 0).sum() > (head.eval()(x) == 0).sum() + 100


def test_predictor_orders_rows_by_class():
    predictor = BoxPredictor(8, 3)
    assert predictor.class_parameters == ["classes.weight", "classes.bias", "box_codes.weight", "box_codes.bias"]
    x = torch.randn(5, 8)
    logits, codes = predictor(x)
    assert (logits.shape, codes.shape) == ((5, 4), (5, 4, 3))
    torch.testing.assert_close(codes[:, 2, 1], x @ predictor.box_codes.weight[2 * 3 + 1])
    agnostic = BoxPredictor(8, 3, class_agnostic=True)
    assert agnostic(x)[1].shape == (5, 4, 1)
    assert agnostic.class_parameters == ["classes.weight", "classes.bias"]


def targets_of(boxes, labels, crowd=None):
    labels = torch.tensor(labels)
    return {
        "boxes": torch.tensor(boxes).float(),
        "labels": labels,
        "iscrowd": torch.zeros_like(labels).bool() if crowd is None else torch.tensor(crowd),
        "area": torch.zeros(labels.shape),
    }


def test_sampling_of_proposals():
    proposals = torch.tensor([[square(10), square(7), [0, 0, 10, 3], [50, 50, 60, 60], square(0)]]).float()
    valid = torch.tensor([[True, True, True, True, False]])
    targets = targets_of([[[0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 0, 0]]], [[4, 2, -1]], [[False, True, False]])
    sampler = RandomSampler(size=8, positive_fraction=0.5)
    samples = sample_rois(proposals, valid, targets, sampler, deterministic=True)
    # Overlaps with the one object: .8, .6125, .375, 0, and 1 for the object itself; crowd and padding stay out.
    rows = {
        (round(iou, 4), label, is_object)
        for iou, label, is_object in zip(
            samples.iou[0].tolist(), samples.labels[0].tolist(), samples.is_object[0].tolist(), strict=True
        )
    }
    assert rows == {
        (0.8, 4, False),
        (0.6125, 4, False),
        (0.375, NEGATIVE, False),
        (0.0, NEGATIVE, False),
        (1.0, 4, True),
    }
    assert samples.taken.tolist() == [[True] * 5]  # no wider than needed
    positive = samples.labels[0] >= 0
    assert (samples.goals[0, positive] == torch.tensor([0.0, 0, 10, 8])).all()
    higher = sample_rois(proposals, valid, targets, sampler, positive_iou=0.7, deterministic=True)
    assert (higher.labels >= 0).sum() == 2
    fast = sample_rois(proposals, valid, targets, sampler, min_negative_iou=0.1, deterministic=True)
    assert fast.taken.sum() == 4 and fast.iou.amin() > 0.3


def test_losses_by_hand():
    logits = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]])
    labels = torch.tensor([[1, NEGATIVE, NEGATIVE]])
    taken = torch.tensor([[True, True, False]])
    expected = -torch.log_softmax(logits[0, 0], 0)[1] + torch.tensor(3.0).log()
    torch.testing.assert_close(class_losses(logits, labels, taken), expected[None])

    proposals, goal = torch.tensor([[square(10), square(10), square(0)]]), torch.tensor([0.0, 0, 20, 10])
    samples = sample_rois(
        proposals,
        taken,
        targets_of([[goal.tolist()]], [[1]]),
        RandomSampler(size=3, positive_fraction=0.67),
        deterministic=True,
    )
    codes = torch.zeros(1, 3, 4, 2)
    codes[0, :, 0, 0] = 100  # of the other class
    coder = BoxCoder(weights=(10, 10, 5, 5), y_first=False)
    # Each of the two proposals should move by half its side and double its width; the object itself stays.
    one = (10 * 0.5 - 0.5) + (5 * torch.tensor(2.0).log() - 0.5)
    moved = (samples.labels >= 0) & ~samples.is_object
    assert moved.sum() >= 1
    loss = box_losses(codes, samples, coder, max_positives=2, beta=1.0)
    torch.testing.assert_close(loss, (moved.sum() * one)[None])


def test_detections_by_hand():
    scores = torch.tensor([[[0.9, 0.02], [0.8, 0.6], [0.3, 0.2]], [[0.04, 0.01], [0, 0], [0, 0]]])
    boxes = torch.tensor([[square(10), square(9.5), [30, 30, 60, 60]]]).repeat(2, 1, 1)
    codes = torch.zeros(2, 3, 4, 2)
    codes[0, 2, 0, 1] = 10  # the second class's box of the third proposal moves out of the image
    coder = BoxCoder(weights=(1, 1, 1, 1), y_first=False)
    found = RoIPostprocessor(max_detections=4)(scores, codes, boxes, coder, torch.tensor([[50, 40], [50, 40]]))
    torch.testing.assert_close(found["scores"], torch.tensor([[0.9, 0.6, 0.3, 0], [0, 0, 0, 0]]))
    assert found["labels"].tolist() == [[0, 1, 0, -1], [-1] * 4]
    assert found["boxes"][0].tolist() == [square(10), square(9.5), [30, 30, 40, 50], square(0)]
    assert found["boxes"][1].abs().sum() == 0


def test_refined_boxes_follow_the_likeliest_class():
    logits = torch.tensor([[[1.0, 2.0, 9.0]]])  # the background counts for nothing here
    codes = torch.zeros(1, 1, 4, 2)
    codes[..., 0, 1] = 0.5
    boxes = refine(torch.tensor([[square(20)]]), logits, codes, BoxCoder(y_first=False), torch.tensor([[50, 25]]))
    assert boxes.tolist() == [[[10, 0, 25, 20]]]


class Spread(nn.Module):
    """A box head of few numbers: the pooled features themselves."""

    channels = 12

    def __init__(self, channels, size):
        super().__init__()

    def forward(self, x):
        return x.flatten(1)


def small_head(kind=RoIHead, **options):
    torch.manual_seed(0)
    head = kind(3, 2, extractor=RoIExtractor(output_size=2), box_head=Spread, **options)
    nn.init.normal_(head.predictor.box_codes.weight, std=0.3)
    nn.init.normal_(head.predictor.classes.weight, std=1)
    return head.eval()


def test_iterative_box_regression(pyramid, boxes):
    size, valid = torch.full((2, 2), 256), torch.ones(2, 40, dtype=torch.bool)
    once, twice = small_head(), small_head(iterations=2)
    with torch.no_grad():
        moved = refine(boxes, *once(pyramid, boxes, valid), once.box_coder, size)
        expected, found = once.detect(pyramid, moved, valid, size), twice.detect(pyramid, boxes, valid, size)
        assert not torch.equal(found["boxes"], once.detect(pyramid, boxes, valid, size)["boxes"])
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_validation_loss_is_one_number(pyramid, boxes):
    head, valid = small_head(), torch.ones(2, 40, dtype=torch.bool)
    targets = targets_of([[[10, 10, 60, 60]], [[50, 50, 150, 100]]], [[0], [1]])
    head.sampler = RandomSampler(size=16, positive_fraction=0.25)
    size = torch.full((2, 2), 256)

    def losses(images):
        one = {key: value[images] for key, value in targets.items()}
        terms = head.loss_terms([x[images] for x in pyramid], boxes[images], valid[images], one, size[images])
        return torch.stack([term.numerator for term in terms.values()]).detach()

    both = losses(slice(None))
    torch.testing.assert_close(both, torch.cat([losses(slice(0, 1)), losses(slice(1, 2))], 1))
    head.train()
    assert not torch.equal(losses(slice(None)), losses(slice(None)))


def test_integral_loss(pyramid, boxes):
    head = small_head(IntegralRoIHead, positive_ious=(0.5, 0.7))
    assert len(head.class_parameters()) == 6 and set(head.class_parameters()) < set(head.state_dict())
    targets = targets_of([[[10, 10, 60, 60]], [[50, 50, 150, 100]]], [[0], [1]])
    size, valid = torch.full((2, 2), 256), torch.ones(2, 40, dtype=torch.bool)
    boxes[:, 0] = targets["boxes"][:, 0] * torch.tensor([1, 1, 0.9, 0.9])
    samples = head.sample(boxes, valid, targets)
    between = (samples.iou >= 0.5) & (samples.iou < 0.7)
    assert between.any()
    (first, second), _ = head.predict(pyramid, samples.boxes, samples.taken)
    terms = head.loss_terms(pyramid, boxes, valid, targets, size)
    expected = class_losses(first, samples.labels, samples.taken)
    expected = expected + class_losses(second, samples.labels.masked_fill(between, NEGATIVE), samples.taken)
    torch.testing.assert_close(terms["class_loss"].numerator, expected)
    plain = small_head()
    plain.load_state_dict(head.state_dict(), strict=False)
    expected = plain.loss_terms(pyramid, boxes, valid, targets, size)
    torch.testing.assert_close(terms["box_loss"].numerator, expected["box_loss"].numerator)
    found = head.detect(pyramid, boxes, valid, size)
    (first, second), codes = head.predict(pyramid, boxes, valid)
    mean = (first.softmax(-1) + second.softmax(-1))[..., :2] / 2
    expected = head.postprocessor(mean, codes, boxes, head.box_coder, size)
    torch.testing.assert_close(found["scores"], expected["scores"])
