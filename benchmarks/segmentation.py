"""Segmenters beside torchvision's reference loop: `python -m benchmarks.segmentation [--quick] [--bf16] [--compile]`.

Both sides hold the same weights, see the same pictures and masks, and run in alternation in one process, so that
whatever else the machine does falls on both; medians and their ratios are reported. Before anything is timed their
results are compared: the loss and the gradient's norm, the scores, the counts of the confusion matrix.

- training step: forward with the auxiliary head where there is one, upsampling, losses over the pixels that are not
  void, backward, SGD step, as `train_one_epoch` of torchvision's references/segmentation does.
- inference: from normalised pictures to a class per pixel. torchvision's networks compute their auxiliary head here
  too.
- metric: the confusion matrix of a picture of VOC's size from labels on the device, ours, that of torchvision's
  references/segmentation/utils.py, and torchmetrics'.

"torchvision" is as it stands (its default memory format); "torchvision, channels last" is given the format that
Triptych uses. Peak memory (CUDA only) is the allocator's over what it held before.
"""

import argparse
import contextlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.measure import Work, alternate, device_name, measured, medians, peak_megabytes, report, text
from metrics.segmentation import confusion_matrix
from models.backbones.dilated import DilatedMobileNetV3, DilatedResNet
from models.segmentation import EncoderDecoder
from models.segmentation.decoders import DeepLabHead, FCNHead, LRASPPHead
from models.segmentation.weights import from_torchvision

CLASSES = 21
PICTURE = (375, 500)  # of the metric: VOC's most frequent size


def _auxiliary(channels: list[int], classes: int) -> FCNHead:
    return FCNHead(channels, classes, feature=0)


NETWORKS = {  # torchvision's name: backbone, decoder, whether there is an auxiliary head
    "fcn_resnet50": (DilatedResNet, FCNHead, True),
    "deeplabv3_resnet50": (DilatedResNet, DeepLabHead, True),
    "lraspp_mobilenet_v3_large": (DilatedMobileNetV3, LRASPPHead, False),
}


class Setting:
    """What all contenders are given.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = args.device
        self.bf16 = args.bf16
        self.compile = args.compile
        generator = torch.Generator().manual_seed(0)
        shape = (args.batch, args.size, args.size)
        self.images = torch.randn(args.batch, 3, *shape[1:], generator=generator).to(self.device)
        masks = torch.randint(CLASSES, (args.batch, args.size // 8, args.size // 8), generator=generator)
        masks = F.interpolate(masks[:, None].float(), shape[1:], mode="nearest")[:, 0].long()
        masks[:, : args.size // 10] = 255  # a tenth is void, as in VOC
        self.masks = masks.to(self.device)

    def precision(self) -> contextlib.AbstractContextManager:
        """Mixed precision in bfloat16, if asked for; the same for both sides."""
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else contextlib.nullcontext()


def build_pair(name: str, device: str) -> tuple[nn.Module, nn.Module]:
    """Torchvision's network and ours with the same random weights."""
    backbone, decoder, has_auxiliary = NETWORKS[name]
    torch.manual_seed(0)
    options = {"aux_loss": True} if has_auxiliary else {}
    peer = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES, **options)
    ours = EncoderDecoder(
        num_classes=CLASSES,
        backbone=backbone(),
        decoder=decoder,
        auxiliary=_auxiliary if has_auxiliary else None,
    )
    ours.load_state_dict(from_torchvision(peer.state_dict()))
    return peer.to(device), ours.to(device, memory_format=torch.channels_last)


def peer_loss(outputs: dict[str, Tensor], masks: Tensor) -> Tensor:
    """The criterion of torchvision's references/segmentation/train.py."""
    losses = {name: F.cross_entropy(x, masks, ignore_index=255) for name, x in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


def our_loss(network: EncoderDecoder) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The loss as `SegmentationModule` computes it."""
    return lambda outputs, masks: sum(term.value() for term in network.loss_terms(outputs, masks).values())


def contenders(name: str, setting: Setting) -> dict[str, tuple[nn.Module, Callable, Tensor]]:
    """Network, loss and pictures by contender."""
    peer, ours = build_pair(name, setting.device)
    also, _ = build_pair(name, setting.device)
    last = setting.images.contiguous(memory_format=torch.channels_last)
    result = {
        "triptych": (ours, our_loss(ours), last),
        "torchvision": (peer, peer_loss, setting.images),
        "torchvision, channels last": (also.to(memory_format=torch.channels_last), peer_loss, last),
    }
    if setting.compile:
        compiled = build_pair(name, setting.device)[1]
        result["triptych, compiled"] = (compiled, our_loss(compiled), last)
        compiled.compile()
    return result


def training_works(name: str, setting: Setting) -> dict[str, Work]:
    """A training step of each contender."""

    def step(network: nn.Module, loss: Callable, images: Tensor) -> Work:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

        def work() -> Tensor:
            optimizer.zero_grad()
            with setting.precision():
                value = loss(network(images), setting.masks)
            value.backward()
            optimizer.step()
            return value

        return work

    return {key: step(*parts) for key, parts in contenders(name, setting).items()}


def inference_works(name: str, setting: Setting) -> dict[str, Work]:
    """An inference of each contender."""

    def infer(network: nn.Module, images: Tensor) -> Work:
        network.eval()

        @torch.inference_mode()
        def work() -> Tensor:
            with setting.precision():
                return network(images)["out"].argmax(1)

        return work

    return {key: infer(network, images) for key, (network, _, images) in contenders(name, setting).items()}


def check_networks(name: str, setting: Setting) -> dict[str, float]:
    """Compare losses, gradients and scores of ours and torchvision's, dropout off.

    Returns:
        Relative differences of the loss and of the gradient's norm, share of pixels that get the same class.

    Raises:
        SystemExit: the results differ by more than arithmetic in another order explains.
    """
    peer, ours = build_pair(name, setting.device)
    found = []
    last = setting.images.contiguous(memory_format=torch.channels_last)
    for network, loss, images in ((ours, our_loss(ours), last), (peer, peer_loss, setting.images)):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        network.eval()  # running statistics: batch statistics of deep features would magnify rounding
        with torch.no_grad(), setting.precision():
            labels = network(images)["out"].argmax(1)
        for module in network.modules():  # the auxiliary head takes part in training mode only
            module.training = not isinstance(module, nn.BatchNorm2d)
        with setting.precision():
            value = loss(network(images), setting.masks)
        value.backward()
        norms = torch.stack([p.grad.double().norm() for p in network.parameters()])
        found.append((value.item(), norms.norm().item(), labels))
    (loss, norm, labels), (their_loss, their_norm, their_labels) = found
    result = {
        "loss": abs(loss / their_loss - 1),
        "gradient norm": abs(norm / their_norm - 1),
        "equal pixels": (labels == their_labels).float().mean().item(),
    }
    tolerance = 2e-2 if setting.bf16 or setting.device == "cuda" else 1e-4  # CUDA's convolutions may use TF32
    if max(result["loss"], result["gradient norm"]) > tolerance or result["equal pixels"] < 1 - 10 * tolerance:
        raise SystemExit(f"{name}: the results differ: {result}")
    return result


def metric_works(device: str) -> dict[str, Work]:
    """From labels on the device to the counts on the host."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    rng = np.random.default_rng(0)
    height, width = PICTURE
    blocks = rng.integers(CLASSES, size=(-(-height // 25), -(-width // 25)))
    truth = np.kron(blocks, np.ones((25, 25), np.int64))[:height, :width]
    prediction = np.where(rng.random(PICTURE) < 0.8, truth, (truth + 1) % CLASSES)
    truth[:37] = 255
    host_truth = truth.astype(np.uint8)
    here, there = torch.from_numpy(prediction).to(device), torch.from_numpy(truth).to(device)

    def ours() -> np.ndarray:
        return confusion_matrix(here.to(torch.uint8).cpu().numpy(), host_truth, CLASSES)

    def reference() -> np.ndarray:  # ConfusionMatrix.update
        target, found = there.flatten(), here.flatten()
        valid = (target >= 0) & (target < CLASSES)
        cells = CLASSES * target[valid].to(torch.int64) + found[valid]
        return torch.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES).cpu().numpy()

    def peer() -> np.ndarray:
        metric = MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False).to(device)
        metric.update(here, there)
        return metric.confmat.cpu().numpy()

    works = {"triptych": ours, "torchvision": reference, "torchmetrics": peer}
    counts = [work() for work in works.values()]
    if not all(np.array_equal(counts[0], other) for other in counts[1:]):
        raise SystemExit("the confusion matrices differ")
    return works


def compare(task: str, works: dict[str, Work], device: str, rounds: int, images: int) -> list[dict]:
    """Rows of the table for one task."""
    peaks: dict[str, float | None] = dict.fromkeys(works)
    for key, work in works.items():
        for _ in range(2):  # warm up: caches, kernels' own tuning, compilation
            work()
        if device == "cuda":
            peaks[key] = peak_megabytes(work, device)
    times = alternate(works, rounds, device)
    return [
        {"task": task, "contender": key, **values, "peak_megabytes": peaks[key]}
        for key, values in medians(times, images).items()
    ]


def main(args: list[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: FCN and LR-ASPP")
    parser.add_argument("--batch", type=int, help="pictures (default: 4; 16 on a GPU)")
    parser.add_argument("--size", type=int, default=480, help="side of the pictures; torchvision's crops")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default: 7; 20 on a GPU")
    parser.add_argument("--quick", action="store_true", help="three rounds (10 on a GPU): under a minute on a GPU")
    parser.add_argument("--bf16", action="store_true", help="mixed precision, on both sides")
    parser.add_argument("--compile", action="store_true", help="also run ours through torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(args)
    gpu = args.device == "cuda"
    args.batch = args.batch or (16 if gpu else 4)
    args.rounds = (
        args.rounds or {(False, False): 7, (False, True): 3, (True, False): 20, (True, True): 10}[gpu, args.quick]
    )
    torch.set_num_threads(args.threads)
    setting = Setting(args)
    rows, checks = [], {}
    for name in args.networks or ["fcn_resnet50", "lraspp_mobilenet_v3_large"]:
        checks[name] = check_networks(name, setting)
        for task, make in (("training step", training_works), ("inference", inference_works)):
            works = make(name, setting)
            rows += compare(f"{name}, {task}", works, args.device, args.rounds, args.batch)
    rows += compare("metric", metric_works(args.device), args.device, 10 * args.rounds, 1)
    described = {
        "batch": args.batch,
        "size": args.size,
        "classes": CLASSES,
        "precision": "bfloat16, mixed" if args.bf16 else "float32",
        "device": device_name(args.device),
        "threads": args.threads,
        "rounds": args.rounds,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    columns = [text("task", 40), text("contender", 27), *measured("images")]
    report(described, rows, columns, as_json=args.json, checks=checks)


if __name__ == "__main__":
    main()
