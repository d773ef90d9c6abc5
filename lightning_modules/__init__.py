"""The training logic: one LightningModule per task, wrapping any network of that task."""

from lightning_modules.detection import DetectionModule
from lightning_modules.language import LanguageModule
from lightning_modules.segmentation import SegmentationModule

__all__ = ["DetectionModule", "LanguageModule", "SegmentationModule"]
