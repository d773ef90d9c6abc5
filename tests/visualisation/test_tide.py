import numpy as np

from metrics.detection import DetectionMetric
from metrics.tide import KINDS, tide
from tests.metrics.synthetic import detections, ground_truth, random_case
from visualisation.tide import tide_figure


def errors_of(truth, results):
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    metric.compute()
    return tide(metric)


def test_bars_are_the_gains():
    errors = errors_of(*random_case(0))
    main, special = tide_figure(errors).axes
    heights = sorted(bar.get_height() for bar in main.patches)
    np.testing.assert_allclose(heights, sorted(errors["errors"][kind]["dAP"] for kind in KINDS))
    assert [bar.get_height() for bar in special.patches] == list(errors["special"].values())
    counts = {int(text.get_text().split("\n")[1].split()[0]) for text in main.texts}
    assert counts == {errors["errors"][kind]["count"] for kind in KINDS}


def test_nothing_to_find(tmp_path):
    tide_figure(errors_of(ground_truth([]), [detections()])).savefig(tmp_path / "tide.png")
    assert (tmp_path / "tide.png").stat().st_size > 1000
