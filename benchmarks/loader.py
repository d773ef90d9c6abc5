"""The data loader beside a PIL + torchvision pipeline: `python -m benchmarks.loader [--json]`.

Both read the same JPEGs (640 x 480, made for the run) with boxes and do the same work: decode, EfficientDet's scale
jitter of .1 to 2 with crop or pad to 512 pixels, mirror half of the time, boxes clipped and the empty ones dropped,
uint8 tensors. One process, one thread each; rounds alternate; medians of images per second and their ratio.

Then the memory that the annotations of as many images as COCO's training split has (118,287, with 7 boxes each) take in
a training with two workers: flat arrays as here, beside the list of dictionaries that datasets over a parsed COCO file
keep. Proportional set size, summed over the three processes, before and after the workers have walked through all of
them once; less that of the same processes without annotations. Each in a process of its own.
"""

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.annotations import DetectionAnnotations
from datamodules.dataset import DetectionDataset
from datamodules.recipes import jittered
from datamodules.shapes import draw

SIDE = 512
CATEGORIES = [1]


def make_pictures(folder: Path, count: int) -> DetectionAnnotations:
    """JPEGs of 640 x 480 pixels with some texture, and seven boxes each."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        picture = cv2.resize(draw(rng, 320)[0], (640, 480), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        file = folder / f"{i}.jpg"
        Image.fromarray(picture).save(file, quality=95)  # 160 KB, as COCO's on average
        images.append((str(file), i, 480, 640))
    return annotations_for(images)


def annotations_for(images: list[tuple[str, int, int, int]]) -> DetectionAnnotations:
    """Seven random boxes per image."""
    rng = np.random.default_rng(1)
    objects = 7 * len(images)
    boxes = np.concatenate([rng.uniform(0, 400, (objects, 2)), rng.uniform(20, 200, (objects, 2))], 1)
    return DetectionAnnotations.from_lists(
        images=images,
        image_index=np.repeat(np.arange(len(images)), 7),
        objects={
            "boxes": boxes,
            "labels": np.zeros(objects),
            "area": boxes[:, 2:].prod(1),
            "iscrowd": np.zeros(objects),
            "difficult": np.zeros(objects),
            "annotation_ids": np.arange(objects),
        },
        class_names=["thing"],
        category_ids=CATEGORIES,
    )


class TorchvisionPipeline(Dataset):
    """The same samples with Pillow and torchvision.transforms.v2."""

    def __init__(self, annotations: DetectionAnnotations) -> None:
        self.files = annotations.image_files.tolist()
        self.boxes = []
        for i in range(len(annotations)):
            objects = annotations.training_targets(i)
            self.boxes.append((torch.from_numpy(objects["boxes"]), torch.from_numpy(objects["labels"])))
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.ScaleJitter((SIDE, SIDE), scale_range=(0.1, 2.0), antialias=True),
                v2.RandomCrop((SIDE, SIDE), pad_if_needed=True),
                v2.RandomHorizontalFlip(),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with Image.open(self.files[index]) as image:
            picture = image.convert("RGB")
        boxes, labels = self.boxes[index]
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(picture.height, picture.width))
        return self.transform(picture, {"boxes": boxes, "labels": labels})


def images_per_second(read: Callable[[int], Any], count: int) -> float:
    """Of one pass over the pictures."""
    start = time.perf_counter()
    for index in range(count):
        read(index)
    return count / (time.perf_counter() - start)


class Walk(Dataset):
    """Touches the annotations of every image, as a training does."""

    def __init__(self, annotations: DetectionAnnotations | list[dict[str, Any]] | range) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> int:
        if isinstance(self.annotations, range):
            return 0
        if isinstance(self.annotations, list):
            return len([box["bbox"] for box in self.annotations[index]["annotations"]])
        return len(self.annotations.training_targets(index)["boxes"])


def list_of_dictionaries(annotations: DetectionAnnotations) -> list[dict[str, Any]]:
    """As a dataset over a parsed COCO file keeps it."""
    result = []
    for i in range(len(annotations)):
        rows = range(annotations.offsets[i], annotations.offsets[i + 1])
        boxes = [
            {
                "id": row,
                "image_id": i,
                "category_id": 1,
                "bbox": annotations.boxes[row].tolist(),
                "area": 1.0,
                "iscrowd": 0,
            }
            for row in rows
        ]
        result.append({"file_name": str(annotations.image_files[i]), "id": i, "annotations": boxes})
    return result


def proportional_megabytes(pids: list[int]) -> float:
    """Summed PSS of processes, from Linux's smaps."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def memory(kind: str, images: int) -> dict[str, float]:
    """MB over this process and two workers, when they start and after they have walked through the annotations."""
    annotations: Any = annotations_for([(f"/pictures/{i:012d}.jpg", i, 480, 640) for i in range(images)])
    if kind == "list of dictionaries":
        annotations = list_of_dictionaries(annotations)
    elif kind == "nothing":
        annotations = range(images)
    gc.collect()
    options = {"batch_size": 64, "num_workers": 2, "persistent_workers": True, "multiprocessing_context": "fork"}
    loader = DataLoader(Walk(annotations), **options)
    iterator = iter(loader)
    next(iterator)
    pids = [os.getpid(), *(worker.pid for worker in iterator._workers)]
    start = proportional_megabytes(pids)
    for _ in iterator:
        pass
    return {"start_mb": start, "end_mb": proportional_megabytes(pids)}


def memories(images: int) -> dict[str, dict[str, float]]:
    """`memory` of both kinds beyond that of no annotations."""
    result = {}
    for kind in ("nothing", "flat arrays", "list of dictionaries"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            result[kind] = fresh.submit(memory, kind, images).result()
    nothing = result.pop("nothing")
    return {kind: {name: sizes[name] - nothing[name] for name in sizes} for kind, sizes in result.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=118_287, help="annotated images in the memory measurement")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    def jitter(dataset: DetectionDataset, index: int, rng: np.random.Generator) -> Any:
        return jittered(dataset, index, rng, side=SIDE, pixels=None)

    with tempfile.TemporaryDirectory() as folder:
        annotations = make_pictures(Path(folder), args.pictures)
        ours = DetectionDataset(annotations, jitter, training=True)
        peer = TorchvisionPipeline(annotations)
        speeds: dict[str, list[float]] = {"triptych": [], "PIL + torchvision": []}
        for epoch in range(args.rounds + 1):
            pairs = {
                "triptych": images_per_second(lambda index, epoch=epoch: ours[epoch, index], args.pictures),
                "PIL + torchvision": images_per_second(peer.__getitem__, args.pictures),
            }
            if epoch:  # the first round warms up
                for name, value in pairs.items():
                    speeds[name].append(value)
    result: dict[str, Any] = {
        "images_per_second_per_core": {name: statistics.median(values) for name, values in speeds.items()},
        "ratio": statistics.median(a / b for a, b in zip(*speeds.values(), strict=True)),
        "memory": memories(args.images),
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result["images_per_second_per_core"].items():
        print(f"{name:<22}{value:8.1f} images/s per core")
    print(f"{'ratio':<22}{result['ratio']:8.2f}")
    for kind, sizes in result["memory"].items():
        print(f"{kind:<22}{sizes['start_mb']:8.0f} MB at start, {sizes['end_mb']:6.0f} MB after an epoch on 2 workers")


if __name__ == "__main__":
    main()
