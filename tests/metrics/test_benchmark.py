import pytest

from benchmarks.detection_map import CONTENDERS, measure


def test_contenders_do_the_same_work():
    rows = {contender: measure(contender, 0, 1, (6, 20, 3)) for contender in CONTENDERS}
    ours = rows["triptych"]
    assert 0 < ours["mAP"] < 1
    assert ours["mAP"] == pytest.approx(rows["pycocotools"]["mAP"], abs=1e-12)
    for row in rows.values():
        assert row["mAP"] == pytest.approx(ours["mAP"], abs=2e-3)  # torchmetrics' thresholds are float32
        assert row["compute_seconds"] > 0 and row["update_seconds"] > 0
