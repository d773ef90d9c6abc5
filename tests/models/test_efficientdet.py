import math

import pytest
import torch
from torch import nn

from errors import UserError
from models.backbones.timm_backbone import TimmBackbone
from models.detection import EfficientDet
from models.detection.efficientdet import VARIANTS
from models.layers import halve
from models.necks.bifpn import BiFPN, FastFusion, bifpn_nodes

SIZE = 128


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EfficientDet(num_classes=5)


def targets(*images):
    """(boxes, labels, iscrowd) per image, padded to the longest."""
    count = max(len(boxes) for boxes, _, _ in images)
    batch = {
        "boxes": torch.zeros(len(images), count, 4),
        "labels": torch.full((len(images), count), -1),
        "iscrowd": torch.zeros(len(images), count, dtype=torch.bool),
    }
    for i, (boxes, labels, crowd) in enumerate(images):
        n = len(boxes)
        batch["boxes"][i, :n] = torch.tensor(boxes).float().view(-1, 4)
        batch["labels"][i, :n] = torch.tensor(labels, dtype=torch.int64)
        batch["iscrowd"][i, :n] = torch.tensor(crowd, dtype=torch.bool)
    return batch


ONE = ([[10, 20, 60, 90]], [3], [False])
TWO = ([[5, 5, 120, 120], [80, 10, 127, 50]], [0, 4], [False, False])
NONE = ([], [], [])
SIZES = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_the_published_ones(variant):
    with torch.device("meta"):
        network = EfficientDet(num_classes=90, variant=variant)
    assert sum(p.numel() for p in network.parameters()) == network.published["parameters"]
    assert network.image_size == VARIANTS[variant].image_size
    assert network.size_divisor == 2 ** VARIANTS[variant].max_level


def test_parameters_of_the_parts_of_d0():
    with torch.device("meta"):
        network = EfficientDet(num_classes=90)
    parts = network.backbone, network.neck, network.head.class_net, network.head.box_net
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [3_595_388, 196_281, 69_354, 19_044]
    assert sum(counts) == 3_880_067


def test_table_and_compound_scaling():
    """The formulas of section 4.2 give the table's depths and sizes for D0 to D4 only; widths are rounded."""
    agree = {}
    for phi, name in enumerate(["d0", "d1", "d2", "d3", "d4", "d5", "d6"]):
        row = VARIANTS[name]
        formula = (512 + 128 * phi, 3 + phi, 3 + phi // 3)
        agree[name] = tuple(a == b for a, b in zip(formula, (row.image_size, row.cells, row.head_repeats), strict=True))
        assert row.channels == pytest.approx(64 * 1.35**phi, rel=0.06)
        assert row.backbone == f"tf_efficientnet_b{phi}"
    assert all(all(agree[name]) for name in ["d0", "d1", "d2", "d3", "d4"])
    assert agree["d5"] == (False, False, True)  # 1280 rather than 1152 pixels, 7 cells rather than 8
    assert agree["d6"] == (True, False, True)  # 8 cells rather than 9
    assert VARIANTS["d7"]._replace(image_size=1280, anchor_scale=4) == VARIANTS["d6"]._replace(
        **{k: getattr(VARIANTS["d7"], k) for k in ("macs", "test_dev_ap", "val_ap")}
    )


def test_unknown_variant():
    with pytest.raises(UserError, match="no variant 'd9': choose one of d0, d1"):
        EfficientDet(num_classes=3, variant="d9")


def test_nodes_of_a_cell():
    expected = [(3, (3, 4)), (2, (2, 5)), (1, (1, 6)), (0, (0, 7))]
    expected += [(1, (1, 7, 8)), (2, (2, 6, 9)), (3, (3, 5, 10)), (4, (4, 11))]
    assert bifpn_nodes(5) == expected


def test_fast_fusion():
    fused = FastFusion(2)([torch.tensor([1.0, 3.0])] * 2)  # automl's test: 1 / (2 + 1e-4) each
    torch.testing.assert_close(fused, torch.tensor([0.99995, 2.99985]), rtol=1e-6, atol=0)
    fusion = FastFusion(3)
    with torch.no_grad():
        fusion.weights.copy_(torch.tensor([3.0, -2.0, 1.0]))
    fused = fusion([torch.tensor([1.0]), torch.tensor([100.0]), torch.tensor([5.0])])
    torch.testing.assert_close(fused, torch.tensor([(3 * 1 + 1 * 5) / 4.0001]))


def test_large_variants_add_without_weights():
    names = {
        v: [n for n, _ in BiFPN([40, 112, 320], weighted=VARIANTS[v].weighted).named_parameters()] for v in VARIANTS
    }
    assert {v for v, some in names.items() if any("fusion" in n for n in some)} == {"d0", "d1", "d2", "d3", "d4", "d5"}


def test_first_cell_projects_p4_and_p5_twice():
    neck = BiFPN([40, 112, 320])
    widths = {name: p.shape[:2] for name, p in neck.cells[0].named_parameters() if name.endswith("conv.weight")}
    projections = sorted((name, shape[1]) for name, shape in widths.items() if "projections" in name)
    assert projections == [
        ("nodes.1.projections.2.conv.weight", 320),
        ("nodes.2.projections.1.conv.weight", 112),
        ("nodes.3.projections.0.conv.weight", 40),
        ("nodes.4.projections.1.conv.weight", 112),
        ("nodes.5.projections.2.conv.weight", 320),
    ]
    assert not any("projections" in name for name, _ in neck.cells[1].named_parameters())


@pytest.mark.parametrize("size", [2, 4, 6, 16])
def test_halving_pads_as_tensorflow(size):
    x = torch.randn(1, 2, size, size)
    padded = nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf)  # SAME of an even size: bottom and right
    torch.testing.assert_close(halve(x), nn.functional.max_pool2d(padded, 3, 2))


def test_backbone_taps_and_padding():
    backbone = TimmBackbone("tf_efficientnet_b0")
    assert (backbone.channels, backbone.strides) == ([40, 112, 320], [8, 16, 32])
    shapes = [tuple(x.shape) for x in backbone(torch.randn(1, 3, 64, 64))]
    assert shapes == [(1, 40, 8, 8), (1, 112, 4, 4), (1, 320, 2, 2)]
    assert type(backbone.body.conv_stem).__name__ == "Conv2dSame"


def test_activations_survive_synchronised_batch_normalisation():
    backbone = TimmBackbone("tf_efficientnet_b0").eval()
    images = torch.randn(1, 3, 64, 64)
    expected = backbone(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(images), expected)


@pytest.mark.parametrize(("variant", "expected"), [("d0", 0.0), ("d1", 0.2)])
def test_stochastic_depth(variant, expected):
    with torch.device("meta"):
        network = EfficientDet(num_classes=2, variant=variant)
    rates = [module.drop_prob for module in network.modules() if hasattr(module, "drop_prob")]
    assert max(rates, default=0) == pytest.approx(expected, abs=0.02)  # the last of n blocks has (n - 1) / n of it


def test_batch_normalisation(network):
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(network.head.class_net.norms) == 3  # repeats
    assert all(len(levels) == 5 for levels in network.head.class_net.norms)


def test_initial_weights(network):
    head = network.head
    torch.testing.assert_close(head.class_net.predict.pointwise.bias.unique(), torch.tensor([-math.log(99)]))
    assert head.box_net.predict.pointwise.bias.abs().max() == 0
    # Variance scaling by TensorFlow's fans: 64 for a pointwise kernel, 9 x 64 for a depthwise one.
    pointwise = torch.cat([conv.pointwise.weight.flatten() for conv in [*head.class_net.convs, *head.box_net.convs]])
    depthwise = torch.cat([conv.depthwise.weight.flatten() for conv in [*head.class_net.convs, *head.box_net.convs]])
    assert pointwise.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert depthwise.std().item() == pytest.approx((9 * 64) ** -0.5, rel=0.05)
    assert pointwise.abs().max() <= 2 * 64**-0.5 / 0.87962566
    # Glorot: uniform to sqrt(6 / (fan in + fan out)).
    weight = network.neck.cells[1].nodes[0].conv.pointwise.weight
    assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / 128), rel=0.01)


def test_preprocessing_normalises_and_blanks_the_padding(network):
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    kept = images.clone()
    result = network.preprocess(images, torch.tensor([[6, 8], [4, 5]]))
    expected = (images.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(result[0].double(), expected[0])
    torch.testing.assert_close(result[1, :, :4, :5].double(), expected[1, :, :4, :5])
    assert (result[1, :, 4:] == 0).all()
    assert (result[1, :, :, 5:] == 0).all()
    assert torch.equal(images, kept)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    result = network.preprocess(channels_last, torch.tensor([[6, 8], [4, 5]]))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_input_size_must_suit_the_pyramid(network):
    with pytest.raises(UserError, match=r"128 x 200 pixels does not suit EfficientDet: .* multiples of 128"):
        network(torch.zeros(1, 3, 128, 200))


def test_batch_loss_does_not_depend_on_the_batches(network):
    network.eval()
    images = torch.randn(3, 3, SIZE, SIZE)
    size = torch.full((3, 2), SIZE)
    batch = targets(ONE, NONE, TWO)
    with torch.no_grad():
        whole = network.loss_terms(network(images), batch, size)
        parts = [
            network.loss_terms(network(images[i : i + 1]), {k: v[i : i + 1] for k, v in batch.items()}, size[:1])
            for i in range(3)
        ]
    assert set(whole) == {"class_loss", "box_loss"}
    for name, term in whole.items():
        assert term.numerator.shape == term.denominator.shape == (3,)
        assert term.numerator.dtype == torch.float32
        numerator = torch.cat([part[name].numerator for part in parts])
        torch.testing.assert_close(term.numerator, numerator, rtol=1e-4, atol=1e-5)
        assert torch.equal(term.denominator, torch.cat([part[name].denominator for part in parts]))
        expected = term.weight * numerator.sum() / (term.denominator.sum() + term.offset)
        torch.testing.assert_close(term.value(), expected, rtol=1e-4, atol=1e-6)
    assert whole["box_loss"].weight == 50
    assert whole["class_loss"].denominator[1] == 0


def test_crowds_and_padding_take_no_part(network):
    crowd = ([*ONE[0], [80, 80, 120, 120]], [3, 1], [False, True])
    plain, plain_codes = network.assign(SIZES, targets(ONE))
    labels, codes = network.assign(SIZES, targets(crowd, TWO))
    assert torch.equal(labels[:1], plain)
    assert torch.equal(codes[:1], plain_codes)
    assert set(labels[1].tolist()) == {-1, 0, 4}


@pytest.mark.parametrize("count", [0, 8])
def test_batch_without_objects(network, count):
    network.train()
    batch = {
        "boxes": torch.zeros(2, count, 4),
        "labels": torch.full((2, count), -1),
        "iscrowd": torch.zeros(2, count, dtype=torch.bool),
    }
    outputs = network(torch.randn(2, 3, SIZE, SIZE))
    terms = network.loss_terms(outputs, batch, torch.full((2, 2), SIZE))
    sum(term.value() for term in terms.values()).backward()
    assert terms["box_loss"].value() == 0
    assert terms["class_loss"].value() > 0
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    network.zero_grad()


def test_detections_lie_within_the_image(network):
    network.eval()
    with torch.no_grad():
        found = network.detect(network(torch.randn(2, 3, SIZE, SIZE)), torch.tensor([[SIZE, SIZE], [40, 70]]))
    assert found["boxes"].shape == (2, 100, 4)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert (found["scores"].diff(dim=1) <= 0).all()
    assert found["labels"].min() >= -1
    assert found["labels"].max() < 5
    assert (found["boxes"] >= 0).all()
    assert found["boxes"][1, :, [0, 2]].max() <= 70
    assert found["boxes"][1, :, [1, 3]].max() <= 40


def test_autocast_leaves_the_losses_in_float32(network):
    network.eval()
    images, size, batch = torch.randn(2, 3, SIZE, SIZE), torch.full((2, 2), SIZE), targets(ONE, TWO)
    with torch.no_grad():
        full = network.loss_terms(network(images), batch, size)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(images)
            low = network.loss_terms(outputs, batch, size)
            found = network.detect(outputs, size)
    assert outputs["class_logits"][0].dtype == torch.bfloat16
    assert found["boxes"].dtype == torch.float32
    for name, term in low.items():
        assert term.numerator.dtype == torch.float32
        torch.testing.assert_close(term.value(), full[name].value(), rtol=0.05, atol=1e-3)


def test_channels_last_gives_the_same(network):
    network.eval()
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        plain = network(images)
        other = network(images.contiguous(memory_format=torch.channels_last))
    for name in ("class_logits", "box_codes"):
        torch.testing.assert_close(torch.cat(plain[name], 1), torch.cat(other[name], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_network_is_one_graph(network, training):
    """`torch.compile` finds no reason to break the graph; the eager backend spares the compiler."""
    torch._dynamo.reset()
    network.train(training)
    images = torch.randn(2, 3, SIZE, SIZE)
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.set_grad_enabled(training):
        expected = network(images)
        for name, buffer in network.named_buffers():
            buffer.copy_(statistics[name])
        outputs = torch.compile(network, fullgraph=True, backend="eager")(images)
    assert outputs["sizes"] == expected["sizes"]
    torch.testing.assert_close(outputs["class_logits"], expected["class_logits"], rtol=1e-4, atol=1e-5)
    if training:
        torch.cat(outputs["class_logits"], 1).sum().backward()
        network.zero_grad()
