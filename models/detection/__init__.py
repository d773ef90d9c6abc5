"""Object detectors and the parts that they are composed of."""

from models.detection.detector import Detections, Detector, Targets
from models.detection.efficientdet import EfficientDet
from models.detection.one_stage import OneStageDetector

__all__ = ["Detections", "Detector", "EfficientDet", "OneStageDetector", "Targets"]
