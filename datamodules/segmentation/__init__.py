"""Semantic segmentation: pictures with masks."""

from datamodules.segmentation.shapes import ShapesSegmentation
from datamodules.segmentation.voc import VocSegmentation

__all__ = ["ShapesSegmentation", "VocSegmentation"]
