"""mAP side by side with torchmetrics and pycocotools: `python -m benchmarks.detection_map [--json]`.

The detections of a random dataset are handed to each contender on one and on two processes (gloo, every process has
its share of the images). Timed is what happens when the epoch ends: the gather and the computation, until the slowest
process has the value; beside it, the `update` calls before. Each measurement runs in processes of its own; rounds
alternate between contenders, so that whatever else the machine does falls on all; medians and their ratios are
reported. Peak memory is that of rank 0, over what it held before the first `update`.

- torchmetrics: `MeanAveragePrecision()` as it stands, with areas and crowds; and with the backend `faster_coco_eval`.
- pycocotools: `loadRes` of a list of results, `evaluate`, `accumulate`, `summarize`; on one process only.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing

from metrics.detection import DetectionMetric

SIDE = 640
OBJECTS_PER_IMAGE = 7  # COCO's mean is 7.3
BATCH_SIZE = 16


def sample_dataset(images: int, detections: int, classes: int) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Random objects, a hundredth of them crowds, and detections that scatter around them."""
    rng = np.random.default_rng(0)
    count = images * OBJECTS_PER_IMAGE
    size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    boxes = np.concatenate([rng.uniform(0, SIDE - 300, (count, 2)), size], axis=1)
    labels = rng.integers(0, classes, count)
    truth = {
        "image_ids": list(range(images)),
        "image_index": np.repeat(np.arange(images), OBJECTS_PER_IMAGE),
        "boxes": boxes,
        "labels": labels,
        "area": size.prod(1) * 0.7,
        "iscrowd": rng.random(count) < 0.01,
        "difficult": np.zeros(count, dtype=bool),
        "class_names": [str(label) for label in range(classes)],
        "category_ids": list(range(classes)),
    }
    results = []
    for image in range(images):
        pick = image * OBJECTS_PER_IMAGE + rng.integers(0, OBJECTS_PER_IMAGE, detections)
        moved = boxes[pick]
        moved[:, :2] += moved[:, 2:] * rng.normal(0, 0.15, (detections, 2))
        moved[:, 2:] *= np.exp(rng.normal(0, 0.2, (detections, 2)))
        moved[:, 2:] += moved[:, :2]
        label = np.where(rng.random(detections) < 0.6, labels[pick], rng.integers(0, classes, detections))
        scores = np.sort(rng.random(detections, dtype=np.float32))[::-1].copy()
        results.append({"boxes": moved.astype(np.float32), "scores": scores, "labels": label})
    return truth, results


Work = tuple[Callable[[], None], Callable[[], float]]  # update with this process's share; gather, compute, mAP


def triptych(truth: dict[str, Any], results: list[dict[str, np.ndarray]], share: list[int]) -> Work:
    """Ours."""
    metric = DetectionMetric(truth)

    def update() -> None:
        for start in range(0, len(share), BATCH_SIZE):
            batch = share[start : start + BATCH_SIZE]
            metric.update(batch, [results[i] for i in batch])

    return update, lambda: metric.compute()["mAP"]


def torchmetrics(
    truth: dict[str, Any], results: list[dict[str, np.ndarray]], share: list[int], backend: str = "pycocotools"
) -> Work:
    """`MeanAveragePrecision` as it stands."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(backend=backend)
    bounds = np.searchsorted(truth["image_index"], np.arange(len(results) + 1))
    xyxy = truth["boxes"] + np.pad(truth["boxes"][:, :2], ((0, 0), (2, 0)))
    columns = {
        "boxes": torch.from_numpy(xyxy),
        "labels": torch.from_numpy(truth["labels"]),
        "area": torch.from_numpy(truth["area"]),
        "iscrowd": torch.from_numpy(truth["iscrowd"].astype(np.int64)),
    }
    targets = [{key: column[bounds[i] : bounds[i + 1]] for key, column in columns.items()} for i in range(len(results))]
    tensors = [{key: torch.from_numpy(values) for key, values in result.items()} for result in results]

    def update() -> None:
        for start in range(0, len(share), BATCH_SIZE):
            batch = share[start : start + BATCH_SIZE]
            metric.update([tensors[i] for i in batch], [targets[i] for i in batch])

    return update, lambda: float(metric.compute()["map"])


def pycocotools(truth: dict[str, Any], results: list[dict[str, np.ndarray]], share: list[int]) -> Work:
    """The evaluator of COCO's authors on a list of results; an update makes the list."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotated = COCO()
    annotated.dataset = {
        "images": [{"id": identity} for identity in truth["image_ids"]],
        "categories": [{"id": identity} for identity in truth["category_ids"]],
        "annotations": [
            {
                "id": i + 1,
                "image_id": int(image),
                "category_id": int(label),
                "bbox": box,
                "area": area,
                "iscrowd": crowd,
            }
            for i, (image, label, box, area, crowd) in enumerate(
                zip(
                    *(truth[key].tolist() for key in ("image_index", "labels", "boxes", "area", "iscrowd")), strict=True
                )
            )
        ],
    }
    annotated.createIndex()
    listed: list[dict[str, Any]] = []

    def update() -> None:
        for i in share:
            boxes = results[i]["boxes"].astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(boxes.tolist(), results[i]["scores"].tolist(), results[i]["labels"].tolist(), strict=True)
            listed.extend({"image_id": i, "category_id": k, "bbox": box, "score": score} for box, score, k in rows)

    def compute() -> float:
        evaluation = COCOeval(annotated, annotated.loadRes(listed), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return float(evaluation.stats[0])

    return update, compute


CONTENDERS: dict[str, Callable[..., Work]] = {
    "triptych": triptych,
    "torchmetrics": torchmetrics,
    "torchmetrics, faster_coco_eval": lambda *data: torchmetrics(*data, backend="faster_coco_eval"),
    "pycocotools": pycocotools,
}


def peak_resident_megabytes() -> float | None:
    """The most memory that this process ever held; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def measure(contender: str, rank: int, world: int, size: tuple[int, int, int]) -> dict[str, float | None]:
    """Times, mAP and memory of one contender on this process."""

    def barrier() -> None:
        if world > 1:
            torch.distributed.barrier()

    make = CONTENDERS[contender]
    with contextlib.redirect_stdout(io.StringIO()):
        small_update, small_compute = make(*sample_dataset(world, 2, 2), [rank])
        small_update()
        small_compute()  # imports, first use of the group
        truth, results = sample_dataset(*size)
        update, compute = make(truth, results, list(range(rank, size[0], world)))
        before = peak_resident_megabytes()
        barrier()
        start = time.perf_counter()
        update()
        updated = time.perf_counter()
        barrier()
        began = time.perf_counter()
        value = compute()
        barrier()
        ended = time.perf_counter()
    peak = peak_resident_megabytes()
    return {
        "update_seconds": updated - start,
        "compute_seconds": ended - began,
        "mAP": value,
        "peak_megabytes": None if peak is None or before is None else peak - before,
    }


def process(rank: int, contender: str, world: int, size: tuple[int, int, int], folder: str) -> None:
    """Body of one of `world` processes; rank 0 leaves its measurement in the folder."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    row = measure(contender, rank, world, size)
    if rank == 0:
        Path(folder, "row.json").write_text(json.dumps(row))
    if world > 1:
        torch.distributed.destroy_process_group()


def run(contender: str, world: int, size: tuple[int, int, int]) -> dict[str, float | None]:
    """`measure` in `world` fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (contender, world, size, folder), nprocs=world)
        return json.loads(Path(folder, "row.json").read_text())


def main(args: Sequence[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(args)
    if options.images % 2:
        parser.error("--images must be even: torchmetrics needs as many on both processes")
    size = (options.images, options.detections, options.classes)
    places = [
        (contender, world) for world in (1, 2) for contender in CONTENDERS if (contender, world) != ("pycocotools", 2)
    ]
    measured: dict[tuple[str, int], list[dict[str, Any]]] = {place: [] for place in places}
    for _ in range(options.rounds):
        for place in places:
            measured[place].append(run(*place, size))

    def median(place: tuple[str, int], key: str) -> float | None:
        values = [row[key] for row in measured[place]]
        return None if None in values else statistics.median(values)

    rows = [
        {
            "processes": world,
            "contender": contender,
            "compute_seconds": median((contender, world), "compute_seconds"),
            "ratio_to_triptych": median((contender, world), "compute_seconds")
            / median(("triptych", world), "compute_seconds"),
            "update_seconds": median((contender, world), "update_seconds"),
            "peak_megabytes": median((contender, world), "peak_megabytes"),
            "mAP": median((contender, world), "mAP"),
        }
        for contender, world in places
    ]
    setting = {
        **vars(options),
        "batch": BATCH_SIZE,
        "device": platform.processor() or "CPU",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    setting.pop("json")
    if options.json:
        print(json.dumps({"setting": setting, "rows": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"\n{'processes':9} {'contender':32} {'compute':>9} {'ratio':>6} {'update':>9} {'peak':>8}  mAP")
    for row in rows:
        peak = "-" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:.0f} MB"
        print(
            f"{row['processes']:9} {row['contender']:32} {row['compute_seconds']:7.3f} s "
            f"{row['ratio_to_triptych']:6.1f} {row['update_seconds']:7.3f} s {peak:>8}  {row['mAP']:.12f}"
        )


if __name__ == "__main__":
    main()
