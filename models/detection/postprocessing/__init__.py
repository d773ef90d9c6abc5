"""From scores to detections: suppression, fusion, several views."""
