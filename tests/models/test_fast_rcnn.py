from functools import partial

import pytest
import torch

from errors import UserError
from models.backbones.classic import VGG16, AlexNet
from models.detection.regions.fast_rcnn import FastRCNN, FastRoIHead
from models.detection.roi.box_heads import ConvFCHead, TwoFCHead
from models.detection.roi.roi_extractor import RoIExtractor
from models.necks.fpn import FPN
from tests.models.historic_cases import batch, found, overfit, run


def tiny(**changes):
    torch.manual_seed(0)
    options = {
        "backbone": VGG16(width=0.125),
        "roi_head": partial(FastRoIHead, box_head=partial(TwoFCHead, width=32)),
    }
    return FastRCNN(num_classes=3, **{**options, **changes})


def test_parameters_of_the_published_network():
    with torch.device("meta"):
        network = FastRCNN(num_classes=20)
    # VGG16 without its classifier, 21 scores and 80 codes (the paper's 84 have four of the background, never read).
    assert sum(p.numel() for p in network.parameters()) == 138_357_544 - 4_097_000 + 4097 * (21 + 80)


def test_the_papers_numbers_are_the_defaults():
    with torch.device("meta"):
        head = FastRCNN(num_classes=20).roi_head
    assert (head.extractor.method, head.extractor.output_size, head.extractor.strides) == ("pool", 7, (16,))
    assert (head.sampler.size, head.sampler.max_positives) == (64, 16)
    assert (head.positive_iou, head.min_negative_iou, head.smooth_l1_beta) == (0.5, 0.1, 1.0)
    assert head.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert head.postprocessor.nms.iou_threshold == 0.3


def test_it_learns_a_batch():
    network = tiny()
    losses = overfit(network, steps=40)
    assert losses[-1] < 0.35 * losses[0]
    assert found(network) == 4


def test_negatives_that_hardly_touch_an_object_are_not_taken():
    network = tiny()
    _, _, targets, (boxes, valid) = batch()
    samples = network.eval().roi_head.sample(boxes, valid, targets)
    assert (samples.iou[samples.taken] >= 0.1).all()
    negative = samples.taken & (samples.labels < 0)
    assert negative.any() and (samples.iou[negative] < 0.5).all()


def test_loss_of_a_validation_does_not_depend_on_the_batch():
    network = tiny().eval()
    images, image_size, targets, (boxes, valid) = batch()
    together = network.loss_terms(run(network, images, image_size, (boxes, valid)), targets, image_size)
    for i in range(2):
        one = {key: value[i : i + 1] for key, value in targets.items()}
        outputs = run(network, images[i : i + 1], image_size[i : i + 1], (boxes[i : i + 1], valid[i : i + 1]))
        for name, term in network.loss_terms(outputs, one, image_size[i : i + 1]).items():
            torch.testing.assert_close(term.numerator[0], together[name].numerator[i], rtol=1e-4, atol=1e-5)
            assert term.denominator[0] == together[name].denominator[i]


def test_other_backbones_and_an_fpn_fit():
    images, image_size, targets, proposals = batch()
    alexnet = partial(
        FastRoIHead,
        extractor=RoIExtractor(strides=(16,), method="pool", output_size=6),
        box_head=partial(TwoFCHead, width=16),
    )
    network = tiny(backbone=AlexNet(width=0.1), roi_head=alexnet)
    network.loss_terms(run(network, images, image_size, proposals), targets, image_size)

    class Pyramid(torch.nn.Module):
        channels, strides = [8, 16], [4, 8]

        def forward(self, images):
            return [
                torch.ones(len(images), c, 96 // s, 96 // s) for c, s in zip(self.channels, self.strides, strict=True)
            ]

    head = partial(FastRoIHead, extractor=RoIExtractor(strides=(4, 8)), box_head=partial(TwoFCHead, width=16))
    network = tiny(backbone=Pyramid(), neck=partial(FPN, channels=8), roi_head=head)
    assert network.detect(run(network, images, image_size, proposals), image_size)["boxes"].shape == (2, 100, 4)


def test_a_picture_without_proposals_or_objects():
    network = tiny().eval()
    images, image_size, targets, (boxes, _) = batch()
    outputs = run(network, images, image_size, (boxes[:, :8], torch.zeros(2, 8, dtype=torch.bool)))
    assert (network.detect(outputs, image_size)["labels"] == -1).all()
    targets["labels"][:] = -1
    terms = network.train().loss_terms(outputs, targets, image_size)
    sum(term.value() for term in terms.values()).backward()
    assert all(term.value() == 0 for term in terms.values())


def test_without_proposals_the_remedy_is_named():
    network = tiny()
    images, image_size, targets, _ = batch()
    outputs = network(network.preprocess(images, image_size))
    for use in (lambda: network.detect(outputs, image_size), lambda: network.loss_terms(outputs, targets, image_size)):
        with pytest.raises(UserError, match=r"set data\.proposals to datamodules\.selective_search\.SelectiveSearch"):
            use()


def test_full_rank_svd_detects_the_same_and_a_small_one_nearly():
    torch.manual_seed(0)
    network = tiny().eval()
    images, image_size, _, proposals = batch()

    def predict(network):
        outputs = run(network, images, image_size, proposals)
        return network.roi_head(outputs["features"], *proposals)

    before = predict(network)
    parameters = sum(p.numel() for p in network.parameters())
    state = network.state_dict()

    network.truncate([32, 32])
    full = predict(network)
    for a, b in zip(full, before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

    # The option for testing: weights of the full layers are loaded into the small ones.
    small = tiny(svd_ranks=[8, 4]).eval()
    small.load_state_dict(state)
    cut = predict(small)
    size = 64 * 49
    saved = 32 * (size + 32) - 8 * (size + 32) - 4 * (32 + 32)
    assert sum(p.numel() for p in small.parameters()) == parameters - saved
    assert 0 < (cut[0] - before[0]).abs().max() < 0.5 * before[0].abs().max() + 0.1


@pytest.mark.parametrize(
    ("head", "ranks", "message"),
    [
        (TwoFCHead, [8], "give two ranks"),
        (TwoFCHead, [8, 33], "at most 32"),
        (TwoFCHead, [0, 8], "svd_ranks has 0"),
        (partial(ConvFCHead, convs=1, conv_channels=4), [8, 8], "two fully connected layers"),
    ],
)
def test_wrong_ranks_are_refused(head, ranks, message):
    with pytest.raises(UserError, match=message):
        tiny(roi_head=partial(FastRoIHead, box_head=partial(head, width=32)), svd_ranks=ranks)


def test_weights_carry_over_to_other_classes():
    network = tiny()
    rows = {network.state_dict()[name].shape[0] for name in network.class_parameters()}
    assert rows == {3, 12}
