"""Object detectors and the parts that they are composed of."""

from models.detection.cascade_rcnn import CascadeRCNN
from models.detection.detector import Detections, Detector, Targets
from models.detection.efficientdet import EfficientDet
from models.detection.faster_rcnn import FasterRCNN
from models.detection.one_stage import OneStageDetector
from models.detection.retinanet import RetinaNet
from models.detection.ssd import SSD
from models.detection.two_stage import TwoStageDetector

__all__ = [
    "SSD",
    "CascadeRCNN",
    "Detections",
    "Detector",
    "EfficientDet",
    "FasterRCNN",
    "OneStageDetector",
    "RetinaNet",
    "Targets",
    "TwoStageDetector",
]
