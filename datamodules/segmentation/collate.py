"""From samples to a batch of pictures with masks."""

from typing import Any

import torch

from datamodules.segmentation.masks import IGNORED


def collate_segmentation(samples: list[dict[str, Any]], size_divisor: int = 1) -> dict[str, Any]:
    """Stack samples of `SegmentationDataset` or `SegmentationPictures`.

    Images of different sizes are padded at the bottom and right to the largest height and width, rounded up to
    multiples of `size_divisor`: images with zeros, masks with 255.

    Returns:
        image (B, 3, H, W) uint8; image_size (B, 2) int64, height and width of the picture in its frame; original_size
        (B, 2) int64; index (B,) int64; mask (B, H, W) uint8 unless for prediction; in evaluation label, a list of B
        uint8 masks (h, w) at the original sizes.
    """
    height, width = (
        -(-max(sample["image"].shape[axis] for sample in samples) // size_divisor) * size_divisor for axis in (1, 2)
    )

    def stacked(name: str, value: int) -> torch.Tensor:
        planes = [sample[name] for sample in samples]
        if all(plane.shape[-2:] == (height, width) for plane in planes):
            return torch.stack(planes)
        result = planes[0].new_full((len(samples), *planes[0].shape[:-2], height, width), value)
        for row, plane in zip(result, planes, strict=True):
            row[..., : plane.shape[-2], : plane.shape[-1]] = plane
        return result

    batch = {
        "image": stacked("image", 0),
        "image_size": torch.tensor([sample["image_size"] for sample in samples]),
        "original_size": torch.tensor([sample["original_size"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
    }
    if "mask" in samples[0]:
        batch["mask"] = stacked("mask", IGNORED)
    if "label" in samples[0]:
        batch["label"] = [sample["label"] for sample in samples]
    return batch
