"""Detectors beside torchvision's: `python -m benchmarks.detectors [--quick] [--precision bf16] [--channels-last]`.

Faster R-CNN (`fasterrcnn_resnet50_fpn`), RetinaNet (`retinanet_resnet50_fpn`) and SSD300 (`ssd300_vgg16`) with 91
classes. Both sides hold the same weights, see the same pictures and boxes, and run in alternation in one process, so
that whatever else the machine does falls on both; medians and their ratios are reported.

- training step: from pictures in bytes (ours) or from 0 to 1 (torchvision) and boxes: normalisation, forward,
  assignment, sampling, losses, backward, SGD step. Batch normalisation, the stem and the first stage are frozen, as
  torchvision trains from ImageNet's weights.
- inference: from the same pictures to detections.

Weights are random, but scores and boxes are scaled to vary as those of a trained network: a few hundred to some
thousand candidates per picture are above the threshold. Before anything is timed, in float32 and with samplers in a
fixed order on both sides, losses, the gradient's norm and detections are compared; the program stops if they differ.

"torchvision" is as it stands (its default memory format); `--channels-last` adds it in the format that Triptych uses,
`--compile` adds ours through `torch.compile`. Peak memory on a GPU is the allocator's over what it held before a call;
on a CPU (`--memory`) that of a process that runs one contender only.
"""

import argparse
import contextlib
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TheirFasterRCNN
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.measure import (
    Work,
    alternate,
    device_name,
    measured,
    medians,
    number_of_process,
    peak_megabytes,
    report,
    text,
)
from models.backbones.resnet import ResNet
from models.detection.detector import Detector
from models.detection.faster_rcnn import FasterRCNN
from models.detection.retinanet import RetinaNet
from models.detection.sampler import GOLDEN
from models.detection.ssd import SSD

CLASSES = 90
OBJECTS = 10  # per picture
TASKS = ("training step", "inference")


class Batch(NamedTuple):
    """What all contenders are given."""

    pictures: Tensor  # (B, 3, H, W) uint8
    boxes: Tensor  # (B, OBJECTS, 4)
    labels: Tensor  # (B, OBJECTS), 0..89


def sample_batch(count: int, size: int, device: str) -> Batch:
    """Noise that is smooth over some pixels, and random boxes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 8 + 1, size // 8 + 1, generator=generator)
    pictures = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    corner = torch.rand(count, OBJECTS, 2, generator=generator) * 0.6 * size
    extent = (0.05 + 0.35 * torch.rand(count, OBJECTS, 2, generator=generator)) * size
    return Batch(
        (255 * pictures).to(torch.uint8).to(device),
        torch.cat([corner, corner + extent], -1).to(device),
        torch.randint(CLASSES, (count, OBJECTS), generator=generator).to(device),
    )


def _body(stages: list[int], **options: nn.Module) -> nn.Module:
    """Torchvision's ResNet-50 with FPN as it trains it from ImageNet's weights, with random ones."""
    body = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=stages,
        **options,
    )
    for name, module in body.named_modules():
        if name.endswith("bn3"):  # no normalisation holds the sum of residuals back
            nn.init.constant_(module.weight, 0.3)
    return body


def faster_rcnn(size: int) -> tuple[nn.Module, Detector]:
    """Torchvision's and ours."""
    theirs = TheirFasterRCNN(_body([1, 2, 3, 4]), CLASSES + 1, min_size=size, max_size=size)
    nn.init.normal_(theirs.rpn.head.cls_logits.weight, std=0.1)
    nn.init.normal_(theirs.rpn.head.bbox_pred.weight, std=0.02)
    ours = FasterRCNN(
        num_classes=CLASSES, form="torchvision_v1", backbone=ResNet("resnet50", out_indices=(1, 2, 3, 4))
    )  # fmt: skip
    return theirs, ours


def retinanet(size: int) -> tuple[nn.Module, Detector]:
    """Torchvision's and ours."""
    body = _body([2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    theirs = TheirRetinaNet(body, CLASSES + 1, min_size=size, max_size=size)
    ours = RetinaNet(num_classes=CLASSES + 1, form="torchvision_v1", backbone=ResNet("resnet50"))
    return theirs, ours


def ssd300(size: int) -> tuple[nn.Module, Detector]:
    """Torchvision's and ours; the size is always 300."""
    theirs = ssd300_vgg16(weights=None, weights_backbone=None)
    ours = SSD(num_classes=CLASSES, form="300_torchvision")
    for network in (theirs.backbone.features, ours.backbone.features):
        for layer in network[:5]:
            layer.requires_grad_(False)
    return theirs, ours


class Case(NamedTuple):
    """A detector of both sides."""

    make: Callable[[int], tuple[nn.Module, Detector]]
    scores: str  # torchvision's layers that predict classes and codes
    codes: str
    share: float  # of (anchor or proposal, class) pairs that are candidates
    first_label: int  # of torchvision's classes for our class 0
    losses: dict[str, str]  # ours: torchvision's


CASES = {
    "Faster R-CNN": Case(
        faster_rcnn,
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        3e-3,
        1,
        {
            "rpn_class_loss": "loss_objectness",
            "rpn_box_loss": "loss_rpn_box_reg",
            "class_loss": "loss_classifier",
            "box_loss": "loss_box_reg",
        },
    ),
    "RetinaNet": Case(
        retinanet,
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
        2e-4,
        0,
        {"class_loss": "classification", "box_loss": "bbox_regression"},
    ),
    "SSD300": Case(
        ssd300,
        "head.classification_head.module_list",
        "head.regression_head.module_list",
        3e-3,
        1,
        {"class_loss": "classification", "box_loss": "bbox_regression"},
    ),
}


class Pair:
    """Both sides of a case with the same weights, on the device.

    Args:
        name: of the case.
        args: of the command line.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.case = CASES[name]
        self.size = 300 if name == "SSD300" else args.size
        self.batch = sample_batch(args.batch, self.size, args.device)
        torch.manual_seed(0)
        self.theirs, self.ours = self.case.make(self.size)
        self.theirs.to(args.device)
        self._spread_predictions()
        self.ours.load_state_dict(self.ours.published_state(self.theirs.state_dict()))
        self.ours.to(args.device, memory_format=torch.channels_last)
        self.precision = (
            torch.autocast(args.device, torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()
        )

    @torch.no_grad()
    def _spread_predictions(self) -> None:
        """Scale the last layers: logits with a standard deviation of 2, codes of .3, a share of candidates."""
        scores = _last_layers(self.theirs, self.case.scores)
        codes = _last_layers(self.theirs, self.case.codes)
        self.theirs.eval()
        for layers, deviation in ((scores, 2.0), (codes, 0.3)):
            for layer, outputs in zip(layers, self._record(layers), strict=True):
                layer.weight.mul_(deviation / torch.cat([x.flatten() for x in outputs]).std())
                layer.bias.zero_()
        outputs = [x for calls in self._record(scores) for x in calls]
        if isinstance(self.theirs, TheirRetinaNet):
            logits = torch.cat([x.flatten() for x in outputs])
            sample = logits[torch.randperm(len(logits), device=logits.device)[:1_000_000]]
            shift = torch.logit(torch.tensor(self.theirs.score_thresh)) - sample.quantile(1 - self.case.share)
            scores[0].bias.fill_(shift.item())
            return
        # A softmax: the background's logit is raised until few other classes are above the threshold.
        rows = torch.cat([_by_class(x) for x in outputs])
        threshold = (
            self.theirs.roi_heads.score_thresh if hasattr(self.theirs, "roi_heads") else self.theirs.score_thresh
        )
        low, high = 0.0, 30.0
        for _ in range(20):
            middle = (low + high) / 2
            rows[:, 0] += middle
            share = (rows.softmax(1)[:, 1:] > threshold).float().mean().item()
            rows[:, 0] -= middle
            low, high = (middle, high) if share > self.case.share else (low, middle)
        for layer in scores:
            layer.bias.view(-1, CLASSES + 1)[:, 0] = high

    def _record(self, layers: list[nn.Module]) -> list[list[Tensor]]:
        """The outputs of layers for the batch, of each layer one for every time that it is called."""
        outputs: list[list[Tensor]] = [[] for _ in layers]
        hooks = [
            layer.register_forward_hook(lambda _, __, x, found=found: found.append(x))
            for layer, found in zip(layers, outputs, strict=True)
        ]
        self.theirs(list(self.batch.pictures / 255))
        for hook in hooks:
            hook.remove()
        return outputs

    def their_targets(self) -> list[dict[str, Tensor]]:
        """As torchvision takes them."""
        labels = self.batch.labels + self.case.first_label
        return [{"boxes": b, "labels": y} for b, y in zip(self.batch.boxes, labels, strict=True)]

    def our_targets(self) -> dict[str, Tensor]:
        """As Triptych takes them."""
        labels = self.batch.labels
        return {"boxes": self.batch.boxes, "labels": labels, "iscrowd": torch.zeros_like(labels, dtype=torch.bool)}

    def image_size(self) -> Tensor:
        """(B, 2)."""
        return torch.full((len(self.batch.pictures), 2), self.size, device=self.batch.pictures.device)

    def outputs(self, network: Detector) -> dict:
        """Of ours, as `DetectionModule` calls it."""
        pictures = self.batch.pictures.contiguous(memory_format=torch.channels_last)
        return network(network.preprocess(pictures, self.image_size()))

    def our_losses(self, network: Detector) -> dict[str, Tensor]:
        """In training mode."""
        terms = network.loss_terms(self.outputs(network), self.our_targets(), self.image_size())
        return {name: term.value() for name, term in terms.items()}

    def their_losses(self, network: nn.Module) -> dict[str, Tensor]:
        """In training mode."""
        return network(list(self.batch.pictures / 255), self.their_targets())

    def our_detections(self, network: Detector) -> dict[str, Tensor]:
        """In evaluation mode."""
        return network.detect(self.outputs(network), self.image_size())

    def their_detections(self, network: nn.Module) -> list[dict[str, Tensor]]:
        """In evaluation mode."""
        return network(list(self.batch.pictures / 255))

    def works(self, task: str, args: argparse.Namespace) -> dict[str, Work]:
        """The task of each contender, with a network of its own."""
        networks: dict[str, nn.Module] = {"triptych": self.ours, "torchvision": self.theirs}
        if args.channels_last:
            networks["torchvision, channels last"] = copy.deepcopy(self.theirs).to(memory_format=torch.channels_last)
        if args.compile:
            networks["triptych, compiled"] = copy.deepcopy(self.ours)
            networks["triptych, compiled"].compile()
        make = self._step if task == "training step" else self._inference
        return {name: make(network) for name, network in networks.items()}

    def _step(self, network: nn.Module) -> Work:
        losses = self.our_losses if isinstance(network, Detector) else self.their_losses
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9)

        def work() -> None:
            network.train()
            optimizer.zero_grad()
            with self.precision:
                loss = sum(losses(network).values())
            loss.backward()
            optimizer.step()

        return work

    def _inference(self, network: nn.Module) -> Work:
        detections = self.our_detections if isinstance(network, Detector) else self.their_detections

        @torch.inference_mode()
        def work() -> object:
            network.eval()
            with self.precision:
                return detections(network)

        return work


def _last_layers(network: nn.Module, name: str) -> list[nn.Module]:
    layer = network.get_submodule(name)
    return list(layer) if isinstance(layer, nn.ModuleList) else [layer]


def _by_class(x: Tensor) -> Tensor:
    """(N, 91) or (B, boxes * 91, h, w) -> (N, 91)."""
    if x.ndim == 4:
        x = x.permute(0, 2, 3, 1).reshape(-1, CLASSES + 1)
    return x


class FixedOrder:
    """torchvision's sampler, with the candidates in the fixed order of ours."""

    def __init__(self, size: int, fraction: float) -> None:
        self.size, self.positives = size, int(size * fraction)

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and negatives taken, per image."""
        positives, negatives = [], []
        for labels in matched:
            order = torch.arange(len(labels), device=labels.device) * GOLDEN % 2**32
            taken = []
            for mask, limit in ((labels >= 1, self.positives), (labels == 0, self.size)):
                places = torch.nonzero(mask).flatten()
                taken.append(places[order[places].argsort()][:limit])
            positives.append(torch.zeros_like(labels, dtype=torch.uint8))
            negatives.append(torch.zeros_like(labels, dtype=torch.uint8))
            positives[-1][taken[0]] = 1
            negatives[-1][taken[1][: self.size - len(taken[0])]] = 1
        return positives, negatives


@contextlib.contextmanager
def fixed_order(pair: Pair):
    """Both sides sample in the same order."""
    if not isinstance(pair.theirs, TheirFasterRCNN):
        yield
        return
    theirs, ours = (pair.theirs.rpn, pair.theirs.roi_heads), (pair.ours.rpn, pair.ours.roi_head)
    before = [part.fg_bg_sampler for part in theirs], [part.sampler for part in ours]
    for part, (size, fraction) in zip(theirs, ((256, 0.5), (512, 0.25)), strict=True):
        part.fg_bg_sampler = FixedOrder(size, fraction)
    for part in ours:
        part.sampler = _Deterministic(part.sampler)
    yield
    for part, sampler in zip((*theirs, *ours), (*before[0], *before[1]), strict=True):
        setattr(part, "fg_bg_sampler" if part in theirs else "sampler", sampler)


class _Deterministic:
    """Our sampler in its fixed order in training, too."""

    def __init__(self, sampler: Callable) -> None:
        self.sampler, self.size, self.max_positives = sampler, sampler.size, sampler.max_positives

    def __call__(self, labels: Tensor, *, deterministic: bool = False) -> object:
        """As the sampler."""
        return self.sampler(labels, deterministic=True)


def check(pair: Pair) -> dict[str, float]:
    """Compare losses, gradients and detections of both sides, in float32.

    Returns:
        Largest relative difference of a loss, relative difference of the gradient's norm, share of torchvision's
        detections that are ours, too (class, and box to half a pixel), detections per picture.

    Raises:
        SystemExit: the results differ by more than arithmetic in another order explains.
    """
    exact = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with fixed_order(pair):
        pair.theirs.train()
        pair.ours.train()
        theirs, ours = pair.their_losses(pair.theirs), pair.our_losses(pair.ours)
    difference = max(abs(ours[a].item() / theirs[b].item() - 1) for a, b in pair.case.losses.items())
    norms = []
    for network, losses in ((pair.ours, ours), (pair.theirs, theirs)):
        sum(losses.values()).backward()
        gradients = [p.grad.double().norm() for p in network.parameters() if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())
        network.zero_grad()
        network.eval()
    with torch.inference_mode():
        wanted, found = pair.their_detections(pair.theirs), pair.our_detections(pair.ours)
    same = total = 0
    for i, one in enumerate(wanted):
        labels = found["labels"][i] + pair.case.first_label
        close = (one["boxes"][:, None] - found["boxes"][i]).abs().amax(-1) < 0.5
        close &= one["labels"][:, None] == labels
        same += close.any(1).sum().item()
        total += len(one["labels"])
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = exact
    result = {
        "losses": difference,
        "gradient norm": abs(norms[0] / norms[1] - 1),
        "equal detections": same / max(total, 1),
        "detections per picture": total / len(wanted),
    }
    # Rounding decides between proposals and mined negatives of nearly the same score, so not to the last digits.
    differ = result["losses"] > 2e-3 or result["gradient norm"] > 1e-2 or result["equal detections"] < 0.98
    if differ or not total:
        raise SystemExit(f"{type(pair.ours).__name__}: the results differ: {result}")
    return result


def compare(name: str, pair: Pair, task: str, args: argparse.Namespace) -> list[dict]:
    """Rows of the table for one task."""
    works = pair.works(task, args)
    peaks: dict[str, float | None] = dict.fromkeys(works)
    for key, work in works.items():
        for _ in range(args.warmup):  # caches, kernels' own tuning, compilation
            work()
        if args.device == "cuda":
            peaks[key] = peak_megabytes(work, args.device)
        elif args.memory and "," not in key:
            options = ["--batch", args.batch, "--size", args.size, "--threads", args.threads, "--device", args.device]
            options += ["--precision", args.precision, "--peak-of", name, key, task]
            peaks[key] = number_of_process("benchmarks.detectors", *options)
    times = alternate(works, args.rounds, args.device, cpu_time=args.cpu_time)
    return [
        {"network": name, "task": task, "contender": key, **values, "peak_megabytes": peaks[key]}
        for key, values in medians(times, args.batch).items()
    ]


def main(args: list[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--batch", type=int, help="pictures (default: 2; 8 on a GPU)")
    parser.add_argument("--size", type=int, help="side of the pictures but SSD300's (default: 320; 800 on a GPU)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="repetitions (default: 5; 20 on a GPU)")
    parser.add_argument("--warmup", type=int, help="calls before the first round (default: 1; 3 on a GPU)")
    parser.add_argument("--quick", action="store_true", help="few repetitions: well under 90 seconds on a GPU")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="bf16: mixed, both sides")
    parser.add_argument("--channels-last", action="store_true", help="also torchvision in that memory format")
    parser.add_argument("--compile", action="store_true", help="also run ours through torch.compile")
    parser.add_argument("--memory", action="store_true", help="on a CPU: peak memory in processes of their own")
    parser.add_argument("--cpu-time", action="store_true", help="the process's, on a machine that others use, too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-of", nargs=3, metavar=("NETWORK", "CONTENDER", "TASK"), help=argparse.SUPPRESS)
    args = parser.parse_args(args)
    gpu = args.device == "cuda"
    args.batch = args.batch or (8 if gpu else 2)
    args.size = args.size or (800 if gpu else 320)
    args.rounds = args.rounds or ((5 if gpu else 2) if args.quick else (20 if gpu else 5))
    args.warmup = args.warmup or (3 if gpu else 1)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        name, contender, task = args.peak_of
        print(peak_megabytes(Pair(name, args).works(task, args)[contender], args.device, calls=2))
        return
    checks, rows = {}, []
    for name in args.networks:
        pair = Pair(name, args)
        checks[name] = check(pair)
        for task in args.tasks:
            rows += compare(name, pair, task, args)
        del pair
    setting = {
        "batch": args.batch,
        "size": args.size,
        "classes": CLASSES + 1,
        "precision": "bfloat16, mixed" if args.precision == "bf16" else "float32",
        "device": device_name(args.device),
        "threads": args.threads,
        "clock": "CPU time" if args.cpu_time else "wall",
        "rounds": args.rounds,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    columns = [text("network", 13), text("task", 14), text("contender", 27), *measured("images", median_width=11)]
    report(setting, rows, columns, as_json=args.json, checks=checks)


if __name__ == "__main__":
    main()
