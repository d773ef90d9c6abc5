"""Semantic segmentation: pictures with masks."""

from datamodules.segmentation.coco import CocoSegmentation
from datamodules.segmentation.folder import FolderSegmentation
from datamodules.segmentation.shapes import ShapesSegmentation
from datamodules.segmentation.voc import VocSegmentation

__all__ = ["CocoSegmentation", "FolderSegmentation", "ShapesSegmentation", "VocSegmentation"]
