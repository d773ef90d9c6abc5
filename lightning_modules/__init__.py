"""The training logic: one LightningModule per task, wrapping any network of that task."""

from lightning_modules.detection import DetectionModule

__all__ = ["DetectionModule"]
