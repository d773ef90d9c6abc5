"""A trained model as an object: load a checkpoint, call it on pictures, look at the result.

from inference import load

detector = load("runs/efficientdet_d0/.../checkpoints/best.ckpt")
detector("street.jpg").save("street_boxes.jpg")
"""

from inference.loading import load

__all__ = ["load"]
