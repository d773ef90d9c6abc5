"""The three versions of YOLO, and darknet's files of weights."""
