"""Datasets, augmentation, and loaders that resume exactly. Text has a room of its own, `datamodules.text`."""

from datamodules.coco import CocoDetection
from datamodules.segmentation import CocoSegmentation, FolderSegmentation, ShapesSegmentation, VocSegmentation
from datamodules.shapes import ShapesDetection
from datamodules.voc import VocDetection

__all__ = [
    "CocoDetection",
    "CocoSegmentation",
    "FolderSegmentation",
    "ShapesDetection",
    "ShapesSegmentation",
    "VocDetection",
    "VocSegmentation",
]
