"""The benchmark runs, and finds both sides' results equal."""

import json

from benchmarks.segmentation import main


def test_all_contenders_are_measured(capsys):
    main(["--json", "--networks", "lraspp_mobilenet_v3_large", "--size", "33", "--batch", "2", "--rounds", "1",
          "--threads", "1", "--device", "cpu"])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    check = found["checks"]["lraspp_mobilenet_v3_large"]
    assert check["loss"] < 1e-4 and check["gradient norm"] < 1e-4 and check["equal pixels"] > 0.999
    tasks = [(row["task"], row["contender"]) for row in found["rows"]]
    assert len(tasks) == len(set(tasks)) == 9 and all(row["median_seconds"] > 0 for row in found["rows"])
