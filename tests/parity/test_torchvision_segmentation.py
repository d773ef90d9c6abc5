"""FCN, DeepLabV3 and LR-ASPP against torchvision's, which hold the same weights."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models.segmentation as peers

from models.backbones.dilated import DilatedMobileNetV3, DilatedResNet
from models.segmentation import EncoderDecoder
from models.segmentation.decoders import DeepLabHead, FCNHead, LRASPPHead
from models.segmentation.weights import from_torchvision, load_weights


def auxiliary(channels, classes):
    return FCNHead(channels, classes, feature=0)


def resnet(depth: int, decoder):
    return EncoderDecoder(
        num_classes=21, backbone=DilatedResNet(name=f"resnet{depth}"), decoder=decoder, auxiliary=auxiliary
    )


def mobilenet(decoder, **options):
    return EncoderDecoder(num_classes=21, backbone=DilatedMobileNetV3(), decoder=decoder, **options)


# torchvision's name: (ours, parameters with the auxiliary head, without it)
MODELS = {
    "fcn_resnet50": (lambda: resnet(50, FCNHead), 35_322_218, 32_957_013),
    "fcn_resnet101": (lambda: resnet(101, FCNHead), 54_314_346, 51_949_141),
    "deeplabv3_resnet50": (lambda: resnet(50, DeepLabHead), 42_004_074, 39_638_869),
    "deeplabv3_resnet101": (lambda: resnet(101, DeepLabHead), 60_996_202, 58_630_997),
    "deeplabv3_mobilenet_v3_large": (lambda: mobilenet(DeepLabHead, auxiliary=auxiliary), 11_029_328, 11_025_477),
    "lraspp_mobilenet_v3_large": (lambda: mobilenet(LRASPPHead), 3_221_538, 3_221_538),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    build, with_auxiliary, without = MODELS[name]
    with torch.device("meta"):
        network = build()
    assert sum(p.numel() for p in network.parameters()) == with_auxiliary
    assert sum(p.numel() for key, p in network.named_parameters() if not key.startswith("auxiliary")) == without


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large",
                                  "lraspp_mobilenet_v3_large"])  # fmt: skip
def test_outputs_losses_and_gradients(name, tmp_path):
    torch.manual_seed(0)
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    peer = getattr(peers, name)(weights=None, weights_backbone=None, num_classes=21, **options)
    # Off the initial values, so that each of them counts.
    with torch.no_grad():
        for module in peer.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
            elif isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    network = MODELS[name][0]()
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    load_weights(network, tmp_path / "peer.pth")
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images = torch.randn(2, 3, 65, 81)
    peer.eval(), network.eval()
    with torch.no_grad():
        assert torch.allclose(network(images)["out"], peer(images)["out"], rtol=1e-4, atol=1e-5)
        assert set(network(images)) == {"out"}

    peer.double().train(), network.double().train()
    images = images.double()
    mask = torch.randint(21, (2, 65, 81))
    mask[0, :9] = 255
    theirs = peer(images)
    expected = F.cross_entropy(theirs["out"], mask, ignore_index=255)
    if "aux" in theirs:
        expected = expected + 0.5 * F.cross_entropy(theirs["aux"], mask, ignore_index=255)
    expected.backward()
    ours = network(images)
    loss = sum(
        weight * F.cross_entropy(ours[key], mask, ignore_index=255)
        for key, weight in (("out", 1.0), ("aux", 0.5)) if key in ours
    )  # fmt: skip
    terms = network.loss_terms(ours, mask.to(torch.uint8))
    assert sum(term.value() for term in terms.values()).item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    gradients = from_torchvision({key: p.grad for key, p in peer.named_parameters()})
    for key, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, gradients[key], rtol=1e-6, atol=1e-10), key
