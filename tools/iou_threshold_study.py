"""Cascade R-CNN's study of the overlap that makes a box positive, on any data: `python -m tools.iou_threshold_study`.

    python -m tools.iou_threshold_study --config configs/faster_rcnn_r50_fpn.yaml [--data configs/data/voc.yaml] ...

(Cai and Vasconcelos, CVPR 2018, section 3 and tables 1 to 4.) Trains one detector for each threshold, one with the
integral loss and a cascade, all from the same configuration of a two-stage detector, whose second stage alone is
exchanged; then prints the average precision of each of them on the validation split: with its own proposals, with the
boxes that the cascade would give it and with the objects themselves among the proposals; its boxes sent through the
same stage again and again (iterative box regression); the cascade stage by stage. All other arguments go to the
training. A detector that is in the folder already is not trained again.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.checkpoint_io import load_verified
from errors import UserError
from lightning_modules.cli import TriptychCLI
from lightning_modules.detection import in_original_pixels
from metrics.coco import IOU_THRESHOLDS
from metrics.detection import DetectionMetric
from models.detection.detector import Detections
from models.detection.roi.cascade import CascadeRoIHead
from models.detection.roi.roi_head import RoIHead
from models.detection.two_stage import TwoStageDetector

COLUMNS = {"AP": "mAP"} | {f"AP{t}": f"mAP_{t}" for t in (50, 60, 70, 80, 90)}
HEAD = "--model.network.roi_head"
ITERATIONS = 3

Boxes = tuple[Tensor, Tensor]  # (B, P, 4) and (B, P) bool, False where padded
Evaluation = Callable[[dict[str, Any], Boxes, Tensor], Detections]  # of (outputs, proposals, image sizes)


class Training(TriptychCLI):
    """A training without the test that follows it."""

    def after_fit(self) -> None:
        """Nothing: the study evaluates in its own way."""


class Loaded(TriptychCLI):
    """The objects of a configuration, without a run."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def main(args: list[str] | None = None) -> None:
    """Train what is not there yet, evaluate, print the table and write it to `<folder>/results.json`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/iou_threshold_study"), help="of the trainings")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.6, 0.7], help="ascending")
    options, arguments = parser.parse_known_args(args)
    if options.thresholds != sorted(set(options.thresholds)):
        raise UserError(f"--thresholds are {options.thresholds}: give different ones, ascending")
    runs = {
        name: trained(options.folder / name, [*arguments, *second_stage])
        for name, second_stage in second_stages(options.thresholds).items()
    }
    results = evaluate({name: run.model.network for name, run in runs.items()}, runs["cascade"].datamodule)
    (options.folder / "results.json").write_text(json.dumps(results, indent=2))
    print(table(results))


def second_stages(thresholds: Sequence[float]) -> dict[str, list[str]]:
    """Name of every detector -> the arguments that make its second stage.

    What the configuration says of the second stage and applies to the new one (extractor, box head, sampler) stays.
    """
    values = json.dumps(list(thresholds))
    codes = [[10 * i, 10 * i, 5 * i, 5 * i] for i in range(1, len(thresholds) + 1)]
    weights = [0.5**i for i in range(len(thresholds))]
    single = {
        f"u={u:g}": [HEAD, "models.detection.roi.roi_head.RoIHead", f"{HEAD}.positive_iou={u}"] for u in thresholds
    }
    integral = [HEAD, "models.detection.roi.integral_roi_head.IntegralRoIHead", f"{HEAD}.positive_ious={values}"]
    cascade = [HEAD, "models.detection.roi.cascade.CascadeRoIHead", f"{HEAD}.positive_ious={values}"]
    cascade += [f"{HEAD}.code_weights={json.dumps(codes)}", f"{HEAD}.loss_weights={json.dumps(weights)}"]
    return {**single, "integral": integral, "cascade": cascade}


def trained(folder: Path, arguments: list[str]) -> TriptychCLI:
    """Model and data of a run, trained if it has no checkpoint yet; the model is in evaluation mode.

    Raises:
        UserError: the data has no validation split, or the training left no checkpoint.
    """
    best = folder / "checkpoints" / "best.ckpt"
    arguments = [*arguments, "--run_dir", str(folder)]
    run = Loaded(["validate", *arguments, "--ckpt_path", str(best)]) if best.exists() else Training(["fit", *arguments])
    if not best.exists():
        raise UserError(
            f"{folder} holds no checkpoints/best.ckpt: the study needs data with a validation split and a training "
            "that validates at its end"
        )
    run.model.load_state_dict(load_verified(best)["state_dict"])
    run.model.eval().to(run.trainer.strategy.root_device)
    return run


@torch.no_grad()
def evaluate(networks: dict[str, TwoStageDetector], data: Any) -> dict[str, dict[str, float]]:
    """Average precision of every way to use the detectors, on the validation split.

    Args:
        networks: as `second_stages` names them.
        data: a detection data module.

    Returns:
        Name of the way -> the columns of the table.
    """
    truth = data.ground_truth("val")
    device = next(networks["cascade"].parameters()).device
    metrics: dict[str, DetectionMetric] = {}
    for batch in data.val_dataloader():
        batch = _to(batch, device)
        for name, detections in _detections(networks, batch):
            # The very numbers that COCO's evaluation has: its .9 is .8999999999999999.
            metric = metrics.setdefault(name, DetectionMetric(truth, iou_thresholds=IOU_THRESHOLDS))
            metric.update(batch["index"], in_original_pixels(detections, batch))
    values = {name: metric.compute() for name, metric in metrics.items()}
    return {name: {column: row[key] for column, key in COLUMNS.items()} for name, row in values.items()}


def _detections(networks: dict[str, TwoStageDetector], batch: dict[str, Any]) -> Iterator[tuple[str, Detections]]:
    """Name and detections of every way, for a batch."""
    size = batch["image_size"]
    outputs, proposals = {}, {}
    for name, network in networks.items():
        outputs[name] = network(network.preprocess(batch["image"], size))
        proposals[name] = network.proposals(outputs[name], size)
    cascade: CascadeRoIHead = networks["cascade"].roi_head
    features = outputs["cascade"]["features"]
    valid = proposals["cascade"][1]
    given = [run.boxes for run in cascade.run_stages(features, *proposals["cascade"], size)]
    single = [name for name in networks if name.startswith("u=")]

    def detect(name: str, boxes: Boxes) -> Detections:
        return networks[name].roi_head.detect(outputs[name]["features"], *boxes, size)

    for name in single:
        yield name, detect(name, proposals[name])
    for name, boxes in zip(single[1:], given[1:], strict=True):
        yield f"{name}, cascade's boxes", detect(name, (boxes, valid))
    for name in single:
        yield f"{name}, objects added", detect(name, _with_objects(proposals[name], batch["targets"]))
    head: RoIHead = networks[single[0]].roi_head
    for head.iterations in range(1, ITERATIONS + 1):
        yield f"{single[0]}, iterative box x {head.iterations}", detect(single[0], proposals[single[0]])
    head.iterations = 1
    yield "integral loss", detect("integral", proposals["integral"])
    for cascade.scores, sign in (("last_stage", ""), ("last_boxes", "1~")):
        for stages in range(1 if not sign else 2, len(cascade.stages) + 1):
            cascade.test_stages = stages
            yield f"cascade, stage {sign}{stages}", detect("cascade", proposals["cascade"])


def _with_objects(proposals: Boxes, targets: dict[str, Tensor]) -> Boxes:
    boxes, valid = proposals
    real = (targets["labels"] >= 0) & ~targets["iscrowd"]
    return torch.cat([boxes, targets["boxes"]], 1), torch.cat([valid, real], 1)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _to(inner, device) for key, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as text, in percent."""
    width = max(map(len, results))
    lines = [" " * width + "".join(f"{column:>7}" for column in COLUMNS)]
    for name, row in results.items():
        lines.append(f"{name:{width}}" + "".join(f"{100 * row[column]:7.1f}" for column in COLUMNS))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
