"""Losses of detectors, and what they are divided by."""
