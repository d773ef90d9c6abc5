"""Semantic segmenters and the parts that they are composed of."""

from models.segmentation.encoder_decoder import EncoderDecoder
from models.segmentation.fcn import FCN
from models.segmentation.segmenter import Segmenter

__all__ = ["FCN", "EncoderDecoder", "Segmenter"]
