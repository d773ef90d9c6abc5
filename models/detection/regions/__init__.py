"""Detectors on given proposals: R-CNN, SPPNet, Fast R-CNN."""
