import json

import numpy as np
import pytest

from metrics.detection import DetectionMetric
from tests.metrics.synthetic import SIDE, pycocotools_evaluation, random_case
from tools.evaluate_detections import evaluate, main


@pytest.fixture
def files(tmp_path):
    """An annotation file, a result file of boxes that float32 cannot hold, and both as Python objects."""
    truth, results = random_case(4)
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    metric.compute()
    detected = metric.coco_results()
    for number, entry in enumerate(detected):
        entry["bbox"][0] += number / 7e6
        entry["score"] += number / 7e9
    annotated = {
        "images": [
            {"id": identity, "file_name": f"{identity}.jpg", "height": SIDE, "width": SIDE}
            for identity in truth["image_ids"]
        ],
        "categories": [{"id": identity, "name": f"class {k}"} for k, identity in enumerate(truth["category_ids"])],
        "annotations": [
            {
                "id": int(truth["annotation_ids"][i]),
                "image_id": truth["image_ids"][truth["image_index"][i]],
                "category_id": truth["category_ids"][truth["labels"][i]],
                "bbox": truth["boxes"][i].tolist(),
                "area": truth["area"][i],
                "iscrowd": int(truth["iscrowd"][i]),
            }
            for i in range(len(truth["labels"]))
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(annotated))
    (tmp_path / "results.json").write_text(json.dumps(detected))
    return truth, detected


def test_equal_to_pycocotools(files, capsys):
    truth, detected = files
    assert main(["gt.json", "results.json", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    stats = pycocotools_evaluation(truth, detected).stats
    assert stats[0] > 0.1
    np.testing.assert_allclose(list(values.values())[:12], stats, rtol=0, atol=1e-12)
    assert values["AP/class 3"] is None  # no such object


def test_table(files, capsys):
    assert main(["gt.json", "results.json", "--protocol", "voc07"]) == 0
    rows = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    values = evaluate("gt.json", "results.json", "voc07")
    assert rows == {name.strip(): "-" if np.isnan(value) else f"{value:.6f}" for name, value in values.items()}
    assert set(rows) == {"mAP", "mAP_50", *(f"AP/class {k}" for k in range(4))}


def test_no_detections_at_all(files, tmp_path):
    (tmp_path / "results.json").write_text("[]")
    values = evaluate("gt.json", "results.json")
    assert values["mAP"] == values["mAR_100"] == 0


GOOD = {"image_id": None, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "results.json: is no valid JSON"),
        ({"images": []}, "results.json: holds a dict, not a list of detections; is it an annotation file?"),
        ([GOOD, 7], "results.json: detection number 2 is 7; it must be a dictionary"),
        ([GOOD | {"image_id": 99999}], "detection number 1 is in image 99999, which the annotation file does not list"),
        ([GOOD | {"category_id": 3}], "detection number 1 has category 3, which the annotation file does not list; "
         "its ids are 2, 9, 16, 23"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "detection number 1 has no 'score'"),
        ([GOOD | {"bbox": [1, 2, 3]}], "detection number 1 has bbox [1, 2, 3]; it must be four finite numbers"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "has bbox [1, 2, -3, 4]; it must be four finite numbers [x, y, width, "
         "height], sizes not negative"),
        ([GOOD | {"score": 10**400}], "it must be a finite number"),
        ([GOOD | {"bbox": [1, 2, float("nan"), 4]}], "has bbox [1, 2, nan, 4]"),
        ([GOOD | {"score": float("nan")}], "has score nan; it must be a finite number"),
        ([GOOD | {"score": "high"}], "has score 'high'"),
    ],
)  # fmt: skip
def test_bad_results_get_one_sentence(files, tmp_path, capsys, content, message):
    truth, _ = files
    if isinstance(content, list):
        for entry in content:
            if isinstance(entry, dict) and entry["image_id"] is None:
                entry["image_id"] = truth["image_ids"][0]
    (tmp_path / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["gt.json", "results.json"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: results.json: ") and output.err.count("\n") == 1
    assert message in output.err


def test_missing_files_get_one_sentence(files, capsys):
    assert main(["gt.json", "nowhere.json"]) == 2
    assert "error: nowhere.json: cannot be read (No such file or directory)" in capsys.readouterr().err
    assert main(["nowhere.json", "results.json"]) == 2
    assert "error: nowhere.json: no such annotation file" in capsys.readouterr().err
