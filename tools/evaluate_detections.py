"""COCO metrics of any result file: `python -m tools.evaluate_detections GT.json RESULTS.json [--json]`.

GT.json is an annotation file in COCO's format, RESULTS.json a list of {"image_id", "category_id", "bbox": [x, y, width,
height], "score"}, as `train.py predict` and most detection software write it. The numbers are those of pycocotools.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.coco_file import read_coco
from errors import UserError
from metrics.detection import PROTOCOLS, DetectionMetric


def evaluate(annotation_file: str | Path, result_file: str | Path, protocol: str = "coco") -> dict[str, float]:
    """The metrics of `DetectionMetric` for the detections in a result file.

    Raises:
        UserError: naming the file and the entry that is wrong.
    """
    ground_truth = read_coco(annotation_file, None).ground_truth()
    results = read_results(result_file, ground_truth["image_ids"], ground_truth["category_ids"])
    metric = DetectionMetric(ground_truth, protocol=protocol)
    metric.update(np.arange(len(results)), results, box_format="xywh")
    return metric.compute()


def read_results(
    result_file: str | Path, image_ids: Sequence[int | str], category_ids: Sequence[int | str]
) -> list[dict[str, np.ndarray]]:
    """Read a result file in COCO's format.

    Args:
        result_file: JSON.
        image_ids: of the annotation file, by position.
        category_ids: likewise.

    Returns:
        Per image `boxes` (n, 4) float64 XYWH, `scores` (n,) float64, `labels` (n,) int64, in the order of the file.

    Raises:
        UserError: naming the file and the entry that is wrong.
    """
    try:
        content = json.loads(Path(result_file).read_bytes())
    except OSError as error:
        raise UserError(f"{result_file}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(f"{result_file}: is no valid JSON ({error}); is the file complete?") from error
    if not isinstance(content, list):
        raise UserError(
            f"{result_file}: holds a {type(content).__name__}, not a list of detections; is it an annotation file?"
        )
    # As in annotation files, the number 7 and the string "7" are one id.
    positions = {str(identity): position for position, identity in enumerate(image_ids)}
    labels = {str(identity): label for label, identity in enumerate(category_ids)}
    rows: list[list[list[float]]] = [[] for _ in image_ids]
    for number, entry in enumerate(content, 1):
        where = f"{result_file}: detection number {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {entry!r}; it must be a dictionary")
        for key in ("image_id", "category_id", "bbox", "score"):
            if key not in entry:
                raise UserError(f"{where} has no {key!r}; each needs image_id, category_id, bbox and score")
        image, label = positions.get(str(entry["image_id"])), labels.get(str(entry["category_id"]))
        if image is None:
            raise UserError(f"{where} is in image {entry['image_id']!r}, which the annotation file does not list")
        if label is None:
            raise UserError(
                f"{where} has category {entry['category_id']!r}, which the annotation file does not list; its ids are "
                f"{_listed(category_ids)}"
            )
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)) or min(box[2:]) < 0:
            raise UserError(
                f"{where} has bbox {box!r}; it must be four finite numbers [x, y, width, height], sizes not negative"
            )
        if not _finite(entry["score"]):
            raise UserError(f"{where} has score {entry['score']!r}; it must be a finite number")
        rows[image].append([*box, entry["score"], label])
    arrays = [np.array(of_image, dtype=np.float64).reshape(-1, 6) for of_image in rows]
    return [{"boxes": a[:, :4], "scores": a[:, 4], "labels": a[:, 5].astype(np.int64)} for a in arrays]


def _finite(value: Any) -> bool:
    # Not math.isfinite, which raises for integers beyond any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _listed(identities: Sequence[int | str]) -> str:
    return ", ".join(map(str, identities[:10])) + (", ..." if len(identities) > 10 else "")


def main(args: Sequence[str] | None = None) -> int:
    """Print the metrics; returns the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="tools.evaluate_detections", description=__doc__.partition("\n")[0])
    parser.add_argument("annotations", help="annotation file in COCO's format")
    parser.add_argument("results", help="result file in COCO's format")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="coco", help="how average precision is computed")
    options = parser.parse_args(args)
    try:
        values = evaluate(options.annotations, options.results, options.protocol)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({name: None if math.isnan(value) else value for name, value in values.items()}, indent=2))
        return 0
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {'-' if math.isnan(value) else format(value, '.6f')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
