"""Datasets, augmentation, and loaders that resume exactly."""

from datamodules.coco import CocoDetection
from datamodules.shapes import ShapesDetection
from datamodules.voc import VocDetection

__all__ = ["CocoDetection", "ShapesDetection", "VocDetection"]
