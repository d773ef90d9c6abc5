"""Anchors, assignment, sampling and selection of proposals against values written out by hand."""

import pytest
import torch

from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.low_quality_matcher import LowQualityMatcher
from models.detection.matcher import IGNORED, NEGATIVE
from models.detection.proposals import ProposalSelector
from models.detection.rpn import RPN
from models.detection.sampler import RandomSampler
from models.detection.sized_anchors import SizedAnchors


def test_anchors_of_detectron2_and_of_torchvision():
    exact = SizedAnchors(strides=(4,), sizes=((32,),))([(1, 2)])
    expected = [
        [-22.6274, -11.3137, 22.6274, 11.3137],
        [-16, -16, 16, 16],
        [-11.3137, -22.6274, 11.3137, 22.6274],
        [4 - 22.6274, -11.3137, 4 + 22.6274, 11.3137],
        [-12, -16, 20, 16],
        [4 - 11.3137, -22.6274, 4 + 11.3137, 22.6274],
    ]
    torch.testing.assert_close(exact, torch.tensor(expected), rtol=0, atol=1e-4)
    rounded = SizedAnchors(strides=(4,), sizes=((32,),), rounded=True)([(1, 2)])
    assert rounded[[0, 5]].tolist() == [[-23, -11, 23, 11], [-7, -23, 15, 23]]


def test_order_and_number_of_anchors():
    anchors = SizedAnchors(strides=(16,), sizes=((32, 64),), ratios=(1.0, 4.0), offset=0.5)
    assert anchors.anchors_per_cell == 4
    sides = (anchors([(1, 1)])[:, 2:] - anchors([(1, 1)])[:, :2]).tolist()
    assert sides == [[32, 32], [16, 64], [64, 64], [32, 128]]
    assert anchors([(1, 1)])[0].tolist() == [-8, -8, 24, 24]
    assert len(SizedAnchors()([(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)])) == 268_569


def test_sides_for_every_stride():
    with pytest.raises(ValueError, match="2 strides"):
        SizedAnchors(strides=(4, 8), sizes=((32,),))


def match(anchors, boxes, valid=None, **options):
    boxes = torch.tensor([boxes]).float()
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.tensor([valid])
    return LowQualityMatcher(**options)(torch.tensor(anchors).float(), boxes, valid)[0].tolist()


def test_thresholds_of_the_matcher():
    # Overlaps with the first object: 1, .8, .5, .2, and 0.
    anchors = [[0, 0, 10, 10], [0, 0, 8, 10], [0, 0, 5, 10], [0, 0, 2, 10], [20, 20, 30, 30]]
    assert match(anchors, [[0, 0, 10, 10]]) == [0, 0, IGNORED, NEGATIVE, NEGATIVE]


def test_best_anchors_of_an_object_are_positive_but_keep_their_own():
    # Object 0 is best covered by anchors 0 and 1 alike (.2 each); object 1 by anchor 1 (.5), which thus stays its own.
    anchors = [[0, 0, 10, 2], [0, 8, 10, 10], [50, 50, 60, 60]]
    boxes = [[0, 0, 10, 10], [0, 8, 10, 12]]
    assert match(anchors, boxes) == [0, 1, NEGATIVE]
    assert match(anchors, boxes, [True, False]) == [0, 0, NEGATIVE]
    assert match(anchors, boxes, [False, False]) == [NEGATIVE] * 3


def test_an_object_that_overlaps_nothing_takes_nothing():
    assert match([[0, 0, 10, 10]], [[50, 50, 60, 60]]) == [NEGATIVE]
    nothing = LowQualityMatcher()(torch.ones(3, 4), torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool))
    assert nothing.tolist() == [[NEGATIVE] * 3] * 2


def test_slices_of_anchors_change_nothing(monkeypatch):
    torch.manual_seed(0)
    corner = torch.rand(50, 2) * 30
    anchors = torch.cat([corner, corner + torch.randint(1, 4, (50, 2)) * 5], 1).round()
    boxes = anchors[torch.randint(50, (2, 6))] + 1
    valid = torch.rand(2, 6) > 0.3
    whole = LowQualityMatcher()(anchors, boxes, valid)
    monkeypatch.setattr("models.detection.low_quality_matcher.SLICE_ELEMENTS", 12 * 7)
    assert torch.equal(LowQualityMatcher()(anchors, boxes, valid), whole)
    assert (whole >= 0).any() and (whole == IGNORED).any()


@pytest.mark.parametrize("deterministic", [False, True])
def test_sample_has_the_right_numbers(deterministic):
    labels = torch.full((3, 100), NEGATIVE)
    labels[0, :40] = 3  # more than a quarter of 32
    labels[1, 90:95] = 0  # fewer
    labels[2] = IGNORED
    labels[2, 10:12] = 1
    labels[2, 20:23] = NEGATIVE
    sample = RandomSampler(size=32, positive_fraction=0.25)(labels, deterministic=deterministic)
    chosen = labels.gather(1, sample.index)
    assert sample.index.shape == (3, 32)
    assert sample.taken.sum(1).tolist() == [32, 32, 5]
    assert sample.positive.sum(1).tolist() == [8, 5, 2]
    assert torch.equal(sample.positive, (chosen >= 0) & sample.taken)
    assert (chosen[sample.taken] != IGNORED).all()
    assert sample.positive.int().diff(dim=1).amax() <= 0  # positives first
    for row, taken in zip(sample.index, sample.taken, strict=True):
        assert row[taken].unique().numel() == taken.sum()


def test_chance_and_its_absence():
    labels = torch.full((1, 1000), NEGATIVE)
    labels[:, ::3] = 0
    sampler = RandomSampler(size=20, positive_fraction=0.5)
    torch.manual_seed(0)
    first, second = sampler(labels), sampler(labels)
    assert not torch.equal(first.index, second.index)
    torch.manual_seed(0)
    assert torch.equal(sampler(labels).index, first.index)
    state = torch.get_rng_state()
    fixed = sampler(labels, deterministic=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fixed.index, sampler(labels, deterministic=True).index)
    # Spread over all places, and indifferent to places that are appended.
    assert torch.histc(fixed.index.float(), 4, 0, 1000).amin() >= 3
    longer = torch.cat([labels, torch.full((1, 500), IGNORED)], 1)
    assert torch.equal(sampler(longer, deterministic=True).index, fixed.index)


def test_everything_is_as_likely():
    torch.manual_seed(0)
    labels = torch.full((1, 10), NEGATIVE).repeat(2000, 1)
    labels[:, :4] = 0
    sample = RandomSampler(size=4, positive_fraction=0.5)(labels)
    counts = torch.bincount(sample.index.flatten(), minlength=10)
    assert (counts[:4] - 1000).abs().amax() < 120 and (counts[4:] - 667).abs().amax() < 100


def select(boxes, scores, **options):
    """Levels of anchors that are the boxes themselves."""
    anchors = torch.cat([torch.tensor(level).float() for level in boxes])
    logits = [torch.tensor([level]).logit() for level in scores]
    codes = [torch.zeros(1, len(level), 4) for level in boxes]
    selector = ProposalSelector(**options)
    return selector(logits, codes, anchors, BoxCoder(y_first=False), torch.tensor([[50, 40]]), training=False)


def test_proposals_are_clipped_and_suppressed_within_their_level():
    fine = [[0, 0, 10, 10], [1, 0, 10, 10], [30, 40, 60, 70]]
    coarse = [[0, 0, 10, 10], [45, 0, 60, 20]]  # the second one lies outside: the image is 40 wide
    boxes, scores = select([fine, coarse], [[0.9, 0.8, 0.3], [0.5, 0.7]])
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.5, 0.3]]))
    assert boxes.tolist() == [[[0, 0, 10, 10], [0, 0, 10, 10], [30, 40, 40, 50]]]


def test_numbers_of_proposals():
    row = [[x, 0.0, x + 4.0, 4.0] for x in (0.0, 6.0, 12.0, 18.0)]
    scores = [[0.1, 0.8, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7]]
    _, kept = select([row, row], scores, candidates=(1, 2))
    torch.testing.assert_close(kept, torch.tensor([[0.8, 0.7, 0.6, 0.3]]))
    _, kept = select([row, row], scores, max_proposals=(1, 3))
    torch.testing.assert_close(kept, torch.tensor([[0.8, 0.7, 0.6]]))
    boxes, kept = select([[[60.0, 60, 70, 70]]], [[0.5]])  # outside
    assert (boxes.tolist(), kept.tolist()) == ([[[0, 0, 0, 0]]], [[0]])


def test_decoded_sizes_are_clamped():
    coder = BoxCoder(y_first=False, max_log_ratio=MAX_LOG_RATIO)
    box = coder.decode(torch.tensor([0.0, 0.0, 100.0, 0.0]), torch.tensor([0.0, 0.0, 16.0, 16.0]))
    torch.testing.assert_close(box, torch.tensor([8 - 500.0, 0, 8 + 500, 16]))


def test_losses_by_hand():
    """One level of 2 x 2 cells with one square anchor each, all sampled."""
    anchors = SizedAnchors(strides=(16,), sizes=((16,),), ratios=(1.0,), offset=0.5)
    rpn = RPN(4, anchors=anchors, smooth_l1_beta=1.0)
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]], requires_grad=True)
    codes = torch.zeros(1, 4, 4, requires_grad=True)
    outputs = {"objectness": [logits], "box_codes": [codes], "sizes": [(2, 2)]}
    targets = {
        "boxes": torch.tensor([[[4.0, 0, 20, 16], [0, 16, 16, 32], [0, 0, 0, 0]]]),
        "labels": torch.tensor([[2, 0, -1]]),
        "iscrowd": torch.tensor([[False, True, False]]),
    }
    terms = rpn.loss_terms(outputs, targets, torch.tensor([[32, 32]]))
    # Anchor 0 overlaps the object by .6 and is its best; anchor 1 by 1/7; the crowd is left out.
    wanted = torch.tensor([1.0, 0, 0, 0])
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], wanted)
    torch.testing.assert_close(terms["rpn_class_loss"].value(), bce)
    torch.testing.assert_close(terms["rpn_box_loss"].value(), torch.tensor(0.5 * 0.25**2 / 4))
    sum(term.value() for term in terms.values()).backward()
    torch.testing.assert_close(codes.grad[0, 0], torch.tensor([-0.25 / 4, 0, 0, 0]))
    assert codes.grad[0, 1:].abs().sum() == 0


def test_anchors_beyond_the_border_teach_nothing():
    anchors = torch.tensor([[-1.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 32, 32], [20, 20, 33, 30]])
    targets = {
        "boxes": torch.tensor([[[-1.0, 0, 10, 10]], [[20, 20, 33, 30]]]),
        "labels": torch.tensor([[0], [0]]),
        "iscrowd": torch.zeros(2, 1, dtype=torch.bool),
    }
    size = torch.tensor([[32, 32], [33, 34]])
    inside = RPN(4, inside=True).match(anchors, targets, size)
    # The first anchor is no candidate, so that the object takes the second; the last one lies within the second image.
    assert inside.tolist() == [[IGNORED, 0, NEGATIVE, IGNORED], [IGNORED, NEGATIVE, 0, 0]]
    assert RPN(4).match(anchors, targets, size)[0].tolist() == [0, 0, NEGATIVE, NEGATIVE]
