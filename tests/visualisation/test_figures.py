import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics.curves import detection_curves
from metrics.detection import DetectionMetric
from tests.metrics.synthetic import detections, ground_truth, random_case
from visualisation.figures import (
    confusion_matrix_figure,
    f1_figure,
    precision_recall_figure,
    save_detection_figures,
)


def curves_of(truth, results):
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    metric.compute()
    return detection_curves(metric)


def test_figures_show_the_numbers():
    curves = curves_of(*random_case(0))
    matrix = np.array(curves["confusion"]["matrix"])
    figure = confusion_matrix_figure(curves)
    axes = figure.axes[0]
    counts = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in axes.texts}
    assert counts == {(int(r), int(c)): int(matrix[r, c]) for r, c in np.argwhere(matrix)}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*curves["class_names"], "background"]

    lines = precision_recall_figure(curves).axes[0].get_lines()
    assert len(lines) == 3 + 1  # the fourth class has no objects
    np.testing.assert_array_equal(lines[-1].get_ydata(), curves["precision_recall"]["mean"])
    np.testing.assert_array_equal(lines[0].get_ydata(), curves["precision_recall"]["precision"]["class 0"])

    best = curves["best_f1"]["overall"]
    lines = f1_figure(curves).axes[0].get_lines()
    assert lines[-1].get_xydata().tolist() == [[best["score_threshold"], best["f1"]]]


@pytest.mark.parametrize(
    "case",
    [
        random_case(1),
        random_case(1, classes=60, objects=30),
        (ground_truth([(0, 0, [0, 0, 9, 9])]), [detections()]),
        (ground_truth([]), [detections()]),
    ],
    ids=["few classes", "many classes", "nothing found", "nothing there"],
)
def test_files_are_written(case, tmp_path):
    paths = save_detection_figures(curves_of(*case), tmp_path / "figures")
    assert [path.name for path in paths] == ["confusion_matrix.png", "precision_recall.png", "f1.png"]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_no_global_state_of_matplotlib():
    """Figures drawn by many processes and threads belong to nobody: pyplot would keep and show them."""
    code = (
        "import sys, visualisation.figures as figures\n"
        "figures.precision_recall_figure({'precision_recall': {'recall': [0, 1], 'precision': {'a': [1, 0]}, "
        "'mean': [1, 0]}, 'iou_threshold': 0.5}).savefig('figure.png')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}).returncode == 0
