"""The benchmark runs, and finds both sides' results equal."""

import json

from benchmarks.detectors import main


def test_all_contenders_are_measured(capsys):
    main(["--json", "--networks", "RetinaNet", "--size", "64", "--batch", "1", "--rounds", "1", "--warmup", "1",
          "--threads", "1", "--device", "cpu", "--channels-last"])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    check = found["checks"]["RetinaNet"]
    assert check["losses"] < 1e-4 and check["equal detections"] > 0.98 and check["detections per picture"] > 0
    tasks = [(row["task"], row["contender"]) for row in found["rows"]]
    assert len(tasks) == len(set(tasks)) == 6 and all(row["median_seconds"] > 0 for row in found["rows"])
