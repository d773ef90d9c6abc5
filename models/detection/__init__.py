"""Object detectors and the parts that they are composed of."""

from models.detection.cascade_rcnn import CascadeRCNN
from models.detection.detector import Detections, Detector, Targets
from models.detection.efficientdet import EfficientDet
from models.detection.faster_rcnn import FasterRCNN
from models.detection.one_stage import OneStageDetector
from models.detection.postprocessing.fusion import Suppression, WeightedBoxFusion
from models.detection.postprocessing.tta import TestTimeAugmentation
from models.detection.retinanet import RetinaNet
from models.detection.ssd import SSD
from models.detection.two_stage import TwoStageDetector
from models.detection.yolo.yolo_v1 import YOLOv1
from models.detection.yolo.yolo_v2 import YOLOv2
from models.detection.yolo.yolo_v3 import YOLOv3

__all__ = [
    "SSD",
    "CascadeRCNN",
    "Detections",
    "Detector",
    "EfficientDet",
    "FasterRCNN",
    "OneStageDetector",
    "RetinaNet",
    "Suppression",
    "Targets",
    "TestTimeAugmentation",
    "TwoStageDetector",
    "WeightedBoxFusion",
    "YOLOv1",
    "YOLOv2",
    "YOLOv3",
]
