"""Priors for YOLO from a dataset: clusters of the shapes of its boxes (YOLOv2, section 2, "Dimension Clusters").

    python -m tools.anchor_clusters --config configs/yolov3.yaml [--clusters 9] [--data configs/data/coco.yaml ...]
    python -m tools.anchor_clusters --config configs/yolov2.yaml --clusters 5 --unit 32

k-means with the distance 1 - IoU(shape, centroid), both boxes at the same place: Euclidean distance would spend its
clusters on large boxes. Printed are the priors as `model.network.priors` takes them, and the average overlap of a box
with its best prior, which the paper reports for VOC (61.0 with 5 clusters, 67.2 with 9).

Boxes are measured as they are when a picture is fitted into `data.image_size` (or stretched to it, as `data.resize`
says); augmentation is left out. YOLOv3 takes pixels, YOLOv2 cells of 32 pixels: `--unit 32`.
"""

import numpy as np
from pytorch_lightning.cli import LightningArgumentParser

from datamodules.annotations import DetectionAnnotations
from errors import UserError
from lightning_modules.cli import TriptychCLI
from tools.command import run_quietly, status_of


class AnchorClusters(TriptychCLI):
    """Builds the data as a training would, and clusters boxes in place of training."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of this tool beside train.py's."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--split", type=str, default="train", help="train, val or test")
        parser.add_argument("--clusters", type=int, default=9, help="number of priors")
        parser.add_argument("--unit", type=float, default=1.0, help="pixels that the priors are counted in")
        parser.add_argument("--restarts", type=int, default=5, help="random starts, of which the best is printed")

    def _run_subcommand(self, subcommand: str) -> None:
        options = self.config[subcommand]
        for name in ("clusters", "unit", "restarts"):
            if options[name] <= 0:
                raise UserError(f"--{name} is {options[name]}; it must be positive")
        data = self.datamodule
        shapes = box_shapes(data.annotations(options.split), data.image_size, data.resize)
        if len(np.unique(shapes, axis=0)) < options.clusters:
            raise UserError(
                f"--clusters is {options.clusters}, but the {options.split} split of {data.name} has only "
                f"{len(np.unique(shapes, axis=0))} different shapes: ask for fewer"
            )
        seed = int(self.config[subcommand].seed_everything)
        priors, overlap = best_clusters(shapes, options.clusters, options.restarts, np.random.default_rng(seed))
        rounded = [[float(f"{side / options.unit:.4g}") for side in prior] for prior in priors]
        print(
            f"{options.clusters} clusters of {len(shapes)} boxes, {options.split} split of {data.name} at "
            f"{data.image_size} pixels, average overlap {overlap:.3f}"
        )
        print(f"priors: {rounded}")


def box_shapes(annotations: DetectionAnnotations, side: int, resize: str = "fit") -> np.ndarray:
    """Widths and heights (n, 2) in pixels of all boxes but crowds.

    Args:
        annotations: of a split.
        side: of the square that pictures are resized to.
        resize: `fit` makes the longer side of every picture `side`, `stretch` both sides.
    """
    sizes = np.stack([annotations.widths, annotations.heights], 1)  # (N, 2)
    scale = side / (sizes if resize == "stretch" else sizes.max(1, keepdims=True))
    shapes = annotations.boxes[:, 2:] * np.repeat(scale, np.diff(annotations.offsets), axis=0)
    return shapes[~annotations.iscrowd & (shapes > 0).all(1)]


def best_clusters(shapes: np.ndarray, count: int, restarts: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The clusters of the highest average overlap among several random starts.

    Args:
        shapes: (n, 2), at least `count` of them different.
        count: k.
        restarts: random starts.
        rng: draws them.

    Returns:
        Centroids (k, 2) by ascending area, and the average overlap of a shape with its best centroid.
    """
    found = [clusters(shapes, first_centroids(shapes, count, rng)) for _ in range(restarts)]
    centroids = max(found, key=lambda centroids: overlaps(shapes, centroids).max(1).mean())
    centroids = centroids[np.argsort(centroids.prod(1))]
    return centroids, float(overlaps(shapes, centroids).max(1).mean())


def clusters(shapes: np.ndarray, centroids: np.ndarray, rounds: int = 300) -> np.ndarray:
    """k-means from given centroids (k, 2): (k, 2), once no shape changes its cluster or after so many rounds."""
    owner = None
    for _ in range(rounds):
        nearest = overlaps(shapes, centroids).argmax(1)
        if owner is not None and (nearest == owner).all():
            break
        owner = nearest
        members = np.bincount(owner, minlength=len(centroids))[:, None]
        sums = np.stack([np.bincount(owner, side, len(centroids)) for side in shapes.T], 1)
        centroids = np.where(members > 0, sums / np.maximum(members, 1), centroids)  # an empty cluster stays
    return centroids


def first_centroids(shapes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Shapes (k, 2) drawn one by one, the likelier the worse those before fit them (k-means++)."""
    centroids = shapes[[rng.integers(len(shapes))]]
    while len(centroids) < count:
        distance = (1 - overlaps(shapes, centroids).max(1)) ** 2
        centroids = np.concatenate([centroids, shapes[[rng.choice(len(shapes), p=distance / distance.sum())]]])
    return centroids


def overlaps(shapes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Intersection over union of shapes (n, 2) and centroids (k, 2) at the same place: (n, k)."""
    intersection = np.minimum(shapes[:, None], centroids).prod(2)
    return intersection / (shapes.prod(1)[:, None] + centroids.prod(1) - intersection)


def main(args: list[str] | None = None) -> int:
    """Cluster, and return the exit status: 2 for a user's mistake."""
    return status_of(lambda: AnchorClusters(args))


if __name__ == "__main__":
    run_quietly(main)
