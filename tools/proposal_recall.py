"""How many of a dataset's objects its proposals find: what no detector that is given them can exceed.

    python -m tools.proposal_recall --config configs/fast_rcnn_vgg16.yaml [--split val] [--data configs/data/voc.yaml]

An object is found at an IoU if a proposal overlaps it as much; crowds are left out. The search is kept, so that this is
also the command that searches a large dataset ahead of a training. Last are the mean and the standard deviation of the
targets that Fast R-CNN's boxes learn from these proposals (at an IoU of .5): one over the deviations are the weights of
its `box_coder`, (10, 10, 5, 5) in the authors' later code.
"""

from typing import Any

import numpy as np
import torch
from pytorch_lightning.cli import LightningArgumentParser

from datamodules.dataset import DetectionDataset
from errors import UserError
from lightning_modules.cli import TriptychCLI
from models.detection.box_coder import BoxCoder
from models.detection.boxes import pairwise_iou
from tools.command import run_quietly, status_of

POSITIVE = 0.5


class ProposalRecall(TriptychCLI):
    """Builds the data as a training would, and measures its proposals in place of training."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of this tool beside train.py's."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--split", type=str, default="val", help="train, val or test")
        parser.add_argument("--ious", type=list[float], default=[0.5, 0.7, 0.9], help="overlaps that count as found")

    def _run_subcommand(self, subcommand: str) -> None:
        options = self.config[subcommand]
        data = self.datamodule
        if data.proposals is None:
            raise UserError("this configuration has no data.proposals: name one of a detector that is given proposals")
        found = measure(data.dataset(options.split, augmented=False))
        counts = found["counts"]
        print(f"{len(counts)} pictures, {len(found['overlaps'])} objects, {options.split} split of {data.name}")
        print(f"proposals per picture: mean {counts.mean():.1f}, least {counts.min()}, most {counts.max()}")
        for iou in options.ious:
            print(f"recall at IoU {iou:g}: {(found['overlaps'] >= iou).mean():.4f}")
        codes = found["codes"]
        for name, values in (("mean", codes.mean(0)), ("standard deviation", codes.std(0))):
            print(f"targets of box regression, {name}: {', '.join(f'{value:.3f}' for value in values)}")


def measure(dataset: DetectionDataset) -> dict[str, Any]:
    """Compare proposals with objects, on the original pictures.

    Returns:
        `counts` (N,), proposals per picture; `overlaps` (M,), the best IoU of each object with a proposal; `codes`
        (R, 4), of the objects seen from the proposals that overlap them by half.

    Raises:
        UserError: no picture has an object, or no proposal overlaps one by half.
    """
    coder = BoxCoder(y_first=False)
    counts, overlaps, codes = [], [], []
    for index in range(len(dataset)):
        _, objects = dataset.load(index)
        labels, boxes = objects["labels"], torch.from_numpy(objects["boxes"])
        proposals = boxes[labels < 0]
        real = boxes[(labels >= 0) & ~objects["iscrowd"]]
        counts.append(len(proposals))
        if not len(real):
            continue
        if not len(proposals):
            overlaps.append(np.zeros(len(real)))
            continue
        iou = pairwise_iou(real[None], proposals[None])[0]
        overlaps.append(iou.amax(1).numpy())
        best, match = iou.max(0)
        near = best >= POSITIVE
        codes.append(coder.encode(real[match[near]], proposals[near]).numpy())
    if not overlaps:
        raise UserError("the split has no objects to be found")
    if not sum(map(len, codes)):
        raise UserError("no proposal overlaps an object by half; check data.proposals, its min_side and width")
    return {"counts": np.array(counts), "overlaps": np.concatenate(overlaps), "codes": np.concatenate(codes)}


def main(args: list[str] | None = None) -> int:
    """Measure, and return the exit status: 2 for a user's mistake."""
    return status_of(lambda: ProposalRecall(args))


if __name__ == "__main__":
    run_quietly(main)
