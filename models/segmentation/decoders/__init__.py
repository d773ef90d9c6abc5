"""What turns a backbone's features into scores. A decoder of your own is one more file here.

It is built with the backbone's channels (a list, finest first) and the number of classes, maps the list of features to
scores (B, K, h, w) of any resolution, and names in `class_parameters()` the parameters with one row per class.
"""

from models.segmentation.decoders.deeplab import DeepLabHead
from models.segmentation.decoders.fcn_head import FCNHead
from models.segmentation.decoders.lraspp import LRASPPHead
from models.segmentation.decoders.skips import SkipHead

__all__ = ["DeepLabHead", "FCNHead", "LRASPPHead", "SkipHead"]
