"""From samples to a batch."""

from typing import Any

import torch
from torch import Tensor

OBJECTS_MULTIPLE = 8


def collate_detection(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples of `DetectionDataset`.

    Images of different sizes are padded with zeros at the bottom and right to the largest height and width. Objects
    are padded to the largest count, rounded up to a multiple of 8: few distinct shapes, so that compiled networks are
    not compiled again and again.

    Returns:
        image (B, 3, H, W) uint8; image_size (B, 2) int64, height and width of the image in its frame;
        original_size (B, 2) int64; scale (B, 2) float32, (x, y) factors from original to transformed pixels;
        index (B,) int64; targets: boxes (B, M, 4) float32 XYXY, labels (B, M) int64 with -1 for padding,
        iscrowd (B, M) bool, area (B, M) float32. Where the samples have proposals: proposals (B, P, 4) float32 XYXY and
        proposals_valid (B, P) bool, False where padded.
    """
    batch = len(samples)
    sizes = torch.tensor([sample["image"].shape[-2:] for sample in samples])
    height, width = sizes.amax(0).tolist()
    if bool((sizes == sizes[0]).all()):
        images = torch.stack([sample["image"] for sample in samples])
    else:
        images = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
        for image, sample in zip(images, samples, strict=True):
            image[:, : sample["image"].shape[1], : sample["image"].shape[2]] = sample["image"]
    objects = max(max(len(sample["labels"]) for sample in samples), 1)
    objects = -(-objects // OBJECTS_MULTIPLE) * OBJECTS_MULTIPLE

    def padded(name: str, value: float, *shape: int) -> Tensor:
        result = samples[0][name].new_full((batch, objects, *shape), value)
        for row, sample in zip(result, samples, strict=True):
            row[: len(sample[name])] = sample[name]
        return result

    return {
        "image": images,
        "image_size": torch.tensor([sample["image_size"] for sample in samples]),
        "original_size": torch.tensor([sample["original_size"] for sample in samples]),
        "scale": torch.tensor([sample["scale"] for sample in samples], dtype=torch.float32),
        "index": torch.tensor([sample["index"] for sample in samples]),
        **_proposals(samples),
        "targets": {
            "boxes": padded("boxes", 0, 4),
            "labels": padded("labels", -1),
            "iscrowd": padded("iscrowd", False),
            "area": padded("area", 0),
        },
    }


def _proposals(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    if "proposals" not in samples[0]:
        return {}
    count = max(max(len(sample["proposals"]) for sample in samples), 1)
    count = -(-count // OBJECTS_MULTIPLE) * OBJECTS_MULTIPLE
    boxes = torch.zeros(len(samples), count, 4)
    valid = torch.zeros(len(samples), count, dtype=torch.bool)
    for row, mask, sample in zip(boxes, valid, samples, strict=True):
        row[: len(sample["proposals"])] = sample["proposals"]
        mask[: len(sample["proposals"])] = True
    return {"proposals": boxes, "proposals_valid": valid}
