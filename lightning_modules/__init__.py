"""The training logic: one LightningModule per task, wrapping any network of that task."""

from lightning_modules.detection import DetectionModule
from lightning_modules.language import LanguageModule
from lightning_modules.segmentation import SegmentationModule
from lightning_modules.text_classification import TextClassificationModule

__all__ = ["DetectionModule", "LanguageModule", "SegmentationModule", "TextClassificationModule"]
