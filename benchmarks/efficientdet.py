"""EfficientDet-D0 side by side with effdet: `python -m benchmarks.efficientdet [--json] [--size 512] [--threads 2]`.

All networks start from the same random weights and see the same images and boxes, on a GPU if there is one. Rounds
alternate, so that whatever else the machine does falls on all; medians and their ratios are reported. Peak memory is
that of a process (CPU) or of the allocator (GPU) that runs one contender only, over what it held before the work.

- training step: forward, assignment of targets, losses, backward, SGD step; effdet with the labeler in its bench.
- inference: forward and postprocessing to 100 detections per image.

"effdet" is as it stands (its default memory format); "effdet, channels last" is given the format that Triptych uses.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

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
from models.detection import EfficientDet
from models.detection.weights import load_weights

CONTENDERS = ("triptych", "effdet", "effdet, channels last")
TASKS = ("training step", "inference")
NUM_CLASSES = 90


def sample_batch(batch_size: int, size: int, device: str) -> dict[str, Tensor]:
    """Random images and ten random boxes each."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(batch_size, 10, 2, generator=generator) * 0.7 * size
    extent = (0.02 + 0.28 * torch.rand(batch_size, 10, 2, generator=generator)) * size
    return {
        "images": torch.randn(batch_size, 3, size, size, generator=generator).to(device),
        "boxes": torch.cat([corner, corner + extent], -1).to(device),
        "labels": torch.randint(NUM_CLASSES, (batch_size, 10), generator=generator).to(device),
        "image_size": torch.full((batch_size, 2), size, device=device),
    }


def effdet_bench(task: str, size: int) -> torch.nn.Module:
    """The network of effdet in its bench, freshly initialised."""
    from effdet import create_model

    torch.manual_seed(0)
    return create_model(
        "tf_efficientdet_d0",
        bench_task="predict" if task == "inference" else "train",
        bench_labeler=task != "inference",
        pretrained_backbone=False,
        image_size=(size, size),
    )


def triptych_task(task: str, batch: dict[str, Tensor], compiled: bool) -> Work:
    """One training step or one inference of ours, as a function without arguments."""
    network = EfficientDet(num_classes=NUM_CLASSES, variant="d0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "effdet.pth"
        torch.save(effdet_bench(task, batch["images"].shape[-1]).model.state_dict(), path)
        load_weights(network, path)
    network = network.to(batch["images"].device, memory_format=torch.channels_last)
    if compiled:
        network.compile()
    images = batch["images"].contiguous(memory_format=torch.channels_last)
    crowd = torch.zeros_like(batch["labels"], dtype=torch.bool)
    targets = {"boxes": batch["boxes"], "labels": batch["labels"], "iscrowd": crowd}
    if task == "inference":
        network.eval()
        return torch.inference_mode()(lambda: network.detect(network(images), batch["image_size"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        terms = network.loss_terms(network(images), targets, batch["image_size"])
        sum(term.value() for term in terms.values()).backward()
        optimizer.step()

    return step


def effdet_task(task: str, batch: dict[str, Tensor], channels_last: bool) -> Work:
    """The same of effdet."""
    bench = effdet_bench(task, batch["images"].shape[-1]).to(batch["images"].device)
    images = batch["images"]
    if channels_last:
        bench = bench.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if task == "inference":
        bench.eval()
        info = {
            "img_scale": torch.ones(len(images), device=images.device),
            "img_size": batch["image_size"].float(),
        }
        return torch.inference_mode()(lambda: bench(images, info))
    bench.train()
    targets = {"bbox": batch["boxes"][..., [1, 0, 3, 2]], "cls": batch["labels"].float() + 1}
    optimizer = torch.optim.SGD(bench.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        bench(images, targets)["loss"].backward()
        optimizer.step()

    return step


def make(contender: str, task: str, args: argparse.Namespace) -> Work:
    """The work of a contender, ready to be called."""
    batch = sample_batch(args.batch, args.size, args.device)
    if contender.startswith("triptych"):
        return triptych_task(task, batch, compiled=contender.endswith("compiled"))
    return effdet_task(task, batch, channels_last=contender.endswith("channels last"))


def peak_in_fresh_process(contender: str, task: str, args: argparse.Namespace) -> float:
    """Peak memory of three calls in a process that runs this contender only."""
    options = ["--batch", args.batch, "--size", args.size, "--threads", args.threads, "--device", args.device]
    return number_of_process("benchmarks.efficientdet", "--peak-of", contender, task, *options)


def compare(task: str, contenders: list[str], args: argparse.Namespace) -> list[dict]:
    """Rows of the table for one task."""
    works = {contender: make(contender, task, args) for contender in contenders}
    for work in works.values():
        for _ in range(2):
            work()  # warm up: caches, kernels' own tuning, compilation
    times = alternate(works, args.rounds, args.device)
    works.clear()
    return [
        {
            "task": task,
            "contender": contender,
            **values,
            "peak_megabytes": peak_in_fresh_process(contender, task, args),
        }
        for contender, values in medians(times, args.batch).items()
    ]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="side of the input in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also run ours through torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-of", nargs=2, metavar=("CONTENDER", "TASK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_megabytes(make(*args.peak_of, args), args.device, calls=3))
        return
    contenders = [*CONTENDERS, "triptych, compiled"] if args.compile else list(CONTENDERS)
    rows = [row for task in TASKS for row in compare(task, contenders, args)]
    setting = {
        "network": "EfficientDet-D0",
        "classes": NUM_CLASSES,
        "batch": args.batch,
        "size": args.size,
        "device": device_name(args.device),
        "threads": args.threads,
        "rounds": args.rounds,
        "torch": torch.__version__,
    }
    columns = [text("task", 14), text("contender", 22), *measured("images", median_width=9, digits=0)]
    report(setting, rows, columns, as_json=args.json)


if __name__ == "__main__":
    main()
