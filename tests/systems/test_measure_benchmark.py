"""What the benchmarks share: turns, medians, and the table as it is printed."""

import json

import pytest

from benchmarks import measure
from benchmarks.measure import alternate, measured, medians, report, text


def test_contenders_take_turns():
    calls = []
    times = alternate({"triptych": lambda: calls.append("a"), "peer": lambda: calls.append("b")}, 3, "cpu")
    assert "".join(calls) == "ababab"
    assert [len(values) for values in times.values()] == [3, 3] and min(map(min, times.values())) >= 0


def test_medians_rates_and_ratios():
    found = medians({"triptych": [0.5, 9.0, 0.1], "peer": [0.25, 0.25, 1.0]}, 8, "tokens")
    assert found == {
        "triptych": {"median_seconds": 0.5, "tokens_per_second": 16.0, "ratio_to_triptych": 1.0},
        "peer": {"median_seconds": 0.25, "tokens_per_second": 32.0, "ratio_to_triptych": 0.5},
    }


def test_peak_beyond_what_was_held(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "peak_resident_megabytes", lambda: 100.0 + 50.0 * len(calls))
    assert measure.peak_megabytes(lambda: calls.append(1), "cpu", calls=3) == 150.0


ROWS = [
    {"task": "step", "median_seconds": 0.5, "images_per_second": 1234.5, "ratio_to_triptych": 1, "peak_megabytes": 7},
    {"task": "run", "median_seconds": 1.5, "images_per_second": 2, "ratio_to_triptych": 0.333, "peak_megabytes": None},
]  # fmt: skip


def test_table(capsys):
    report({"batch": 2}, ROWS, [text("task", 6), *measured("images")], as_json=False, checks={"A": {"loss": 1 / 3}})
    assert capsys.readouterr().out == (
        "batch 2\n"
        "A: ours against torchvision's: loss 0.333\n"
        "\n"
        "task       median  images/s  ratio      peak\n"
        "step     500.0 ms   1234.50   1.00      7 MB\n"
        "run     1500.0 ms      2.00   0.33          \n"
    )


@pytest.mark.parametrize("checks", [None, {"A": {"loss": 0.5}}])
def test_json(capsys, checks):
    report({"batch": 2}, ROWS, [], as_json=True, checks=checks)
    wanted = {"setting": {"batch": 2}, "rows": ROWS} | ({} if checks is None else {"checks": checks})
    assert json.loads(capsys.readouterr().out) == wanted
