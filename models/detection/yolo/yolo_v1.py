"""YOLO, the first (Redmon, Divvala, Girshick, Farhadi: "You Only Look Once", CVPR 2016)."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from errors import UserError
from models.backbones.darknet import FastYOLOv1Backbone, YOLOv1Backbone, scaled
from models.detection.detector import Targets
from models.detection.postprocessing.nms import HardNMS
from models.detection.yolo.base import YOLO, output_parameters, per_image, row_iou
from models.detection.yolo.yolo_postprocess import YOLOPostprocessor
from models.detection.yolo.yolo_v1_head import GridOutputs, GridPrediction, LocallyConnected, initialise_
from models.loss_term import LossTerm

STRIDE = 64


class Variant(NamedTuple):
    """A published form of the network.

    Figures are for 20 classes at 448 pixels, those of the `cfg` files counted from them; None where there is none.
    """

    backbone: type[YOLOv1Backbone]
    boxes: int  # of a cell
    batch_norm: bool
    hidden: Literal["connected", "local"] | None  # the layer below the predictions: 4096 neurons, or 256 filters
    parameters: int | None
    macs: int | None
    voc_map: float  # on VOC 2007's test set


VARIANTS = {
    # Figure 3.
    "paper": Variant(YOLOv1Backbone, 2, False, "connected", None, None, 63.4),
    # `cfg/yolov1.cfg`, what `yolov1.weights` belongs to.
    "cfg": Variant(YOLOv1Backbone, 3, True, "local", 197_301_875, 20_210_000_000, 63.4),
    # Fast YOLO, `cfg/yolov1-tiny.cfg`.
    "fast": Variant(FastYOLOv1Backbone, 2, True, None, 27_095_374, None, 52.7),
}


class CellTargets(NamedTuple):
    """What the cells of a batch should predict. A cell has one object, the first whose centre is in it."""

    cell: Tensor  # (B, M) int64, the cell of every object
    valid: Tensor  # (B, M) bool, the object is the one of its cell
    boxes: Tensor  # (B, M, 4): x, y from the cell's corner in cells, w, h as shares of the input


class YOLOv1(YOLO):
    """24 convolutions and two layers that see everything: per cell of a 7 x 7 grid a class and a few boxes.

    All outputs are linear and all losses squared errors, halved (equation 3, as darknet's `detection_layer.c` computes
    it): an object's class in its cell; place and square roots of width and height of the responsible box, with weight
    5; the confidence of the responsible box, which should be its overlap with the object; all other confidences, which
    should be 0, with weight .5. Responsible is the predicted box that overlaps the object most, or, if none does, the
    one nearest to it in place and size. A cell can find one object.

    The authors resize pictures to the square without regard to the aspect ratio, after random crops that move borders
    by a fifth; that is the data's affair. The fully connected layers fix the size of the input: `image_size` must be
    the side of the data's pictures.

    Args:
        num_classes: K.
        variant: a key of `VARIANTS`: two boxes and fully connected layers as in the paper, or three boxes, a locally
            connected layer and batch normalisation as in the authors' later configuration; or the small Fast YOLO.
        image_size: side of the input in pixels, a multiple of 64.
        width: multiplies the number of filters of every layer; the paper's is 1.
        bn_momentum: weight of a batch in the running statistics; darknet's is .01.
        dropout: share of the last layer's inputs that are dropped in training; Fast YOLO's authors drop none.
        rescore: the responsible box's confidence should be its overlap; False: 1.
        postprocessor: None is darknet's, overlaps up to .5 and scores from .001.

    Raises:
        UserError: no such variant, or an image size that is no multiple of 64.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        variant: str = "paper",
        image_size: int = 448,
        width: float = 1.0,
        bn_momentum: float = 0.01,
        dropout: float = 0.5,
        rescore: bool = True,
        postprocessor: YOLOPostprocessor | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"YOLOv1 has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
        if image_size <= 0 or image_size % STRIDE:
            raise UserError(f"YOLOv1's image_size {image_size} does not do: choose a multiple of {STRIDE}")
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            size_divisor=STRIDE,
            postprocessor=postprocessor or YOLOPostprocessor(score_threshold=0.001, nms=HardNMS(iou_threshold=0.5)),
        )
        row = VARIANTS[variant]
        self.variant = variant
        self.width = width
        self.rescore = rescore
        self.side = image_size // STRIDE  # S
        self.backbone = row.backbone(batch_norm=row.batch_norm, width=width, bn_momentum=bn_momentum)
        channels = self.backbone.channels[0]
        features = channels * self.side**2
        layers: list[nn.Module] = [nn.Flatten()]
        if row.hidden == "local":
            layers = [LocallyConnected(channels, scaled(256, width), self.side), nn.Flatten()]
            features = scaled(256, width) * self.side**2
        elif row.hidden == "connected":
            layers += [initialise_(nn.Linear(features, scaled(4096, width))), nn.LeakyReLU(0.1)]
            features = scaled(4096, width)
        self.hidden = nn.Sequential(*layers, nn.Dropout(dropout))
        self.predict = GridPrediction(features, self.side**2, row.boxes, num_classes)

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report for VOC's 20 classes at 448 pixels, nothing for another network."""
        if self.width != 1 or self.num_classes != 20 or self.image_size != 448:
            return {}
        row = VARIANTS[self.variant]
        return {"parameters": row.parameters, "macs": row.macs, "VOC 2007 mAP": row.voc_map}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw outputs for preprocessed images (B, 3, H, W).

        Returns:
            `grid`, the predictions of all S x S cells.

        Raises:
            UserError: H or W is not `image_size`.
        """
        height, width = images.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"an input of {height} x {width} pixels does not suit this YOLOv1, whose last layers are made for "
                f"{self.image_size} x {self.image_size}: set data.image_size and model.network.image_size to the same "
                f"number"
            )
        return {"grid": self.predict(self.hidden(self.backbone(images)[0]))}

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """Terms `box_loss`, `objectness_loss` and `class_loss`, each a sum over an image, divided by the images.

        Args:
            outputs: of `forward`.
            targets: crowds and padding are left out.
            image_size: (B, 2); cells beyond it are background like any other.
        """
        grid = GridOutputs(*(field.float() for field in outputs["grid"]))
        wanted = self.assign(targets)
        image = torch.arange(len(wanted.cell), device=wanted.cell.device)[:, None]
        responsible, overlap = self.responsible(grid.boxes[image, wanted.cell].detach(), wanted)
        boxes = grid.boxes[image, wanted.cell, responsible]  # (B, M, 4)
        codes = torch.cat([wanted.boxes[..., :2], wanted.boxes[..., 2:].sqrt()], -1)
        box_loss = (boxes - codes).square().sum(-1)

        own = grid.confidences[image, wanted.cell, responsible]  # (B, M)
        confidence = overlap if self.rescore else torch.ones_like(overlap)
        # All confidences as if there were no object, then for the responsible ones what they really owe.
        objectness_loss = ((own - confidence).square() - 0.5 * own.square()).where(wanted.valid, 0).sum(1)
        objectness_loss = objectness_loss + 0.5 * grid.confidences.square().sum((1, 2))

        labels = nn.functional.one_hot(targets["labels"].clamp(min=0), self.num_classes)
        class_loss = (grid.classes[image, wanted.cell] - labels).square().sum(-1)
        return {
            "box_loss": per_image(box_loss.where(wanted.valid, 0).sum(1), weight=5 / 2),
            "objectness_loss": per_image(objectness_loss, weight=1 / 2),
            "class_loss": per_image(class_loss.where(wanted.valid, 0).sum(1), weight=1 / 2),
        }

    @torch.no_grad()
    def assign(self, targets: Targets) -> CellTargets:
        """The cells of the objects' centres; of several objects in a cell the first has it."""
        boxes = targets["boxes"].float()
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (targets["labels"] >= 0) & ~targets["iscrowd"] & (sides > 0).all(-1)
        centre = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)  # (B, M, 2), in cells
        corner = centre.long().clamp(0, self.side - 1)
        cell = (corner[..., 1] * self.side + corner[..., 0]).where(valid, 0)
        none = boxes.shape[1]
        order = torch.arange(none, device=boxes.device).expand_as(cell)
        first = torch.full((len(boxes), self.side**2), none, device=boxes.device)
        first = first.scatter_reduce(1, cell, order.where(valid, none), "amin")
        shares = (sides / self.image_size).clamp(min=0)
        return CellTargets(cell, valid & (first.gather(1, cell) == order), torch.cat([centre - corner, shares], -1))

    @torch.no_grad()
    def responsible(self, predicted: Tensor, wanted: CellTargets) -> tuple[Tensor, Tensor]:
        """Which of the boxes of its cell answers for each object, and its overlap with the object.

        Args:
            predicted: (B, M, n, 4), raw, of the cell of each object.
            wanted: the objects.

        Returns:
            Positions (B, M) int64 among the n boxes, and overlaps (B, M) from 0 to 1.
        """
        unit = predicted.new_tensor([self.side, self.side, 1, 1])  # places in cells -> shares of the input
        boxes = torch.cat([predicted[..., :2], predicted[..., 2:].square()], -1) / unit
        objects = (wanted.boxes / unit)[..., None, :]
        overlap = row_iou(_corners(boxes), _corners(objects))  # (B, M, n)
        distance = (boxes - objects).square().sum(-1)
        best = torch.where((overlap > 0).any(-1), overlap.argmax(-1), distance.argmin(-1))
        return best, overlap.gather(-1, best[..., None])[..., 0]

    def boxes_and_scores(self, outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Boxes (B, S S n, 4) XYXY pixels, and confidences times class predictions (B, S S n, K)."""
        grid = GridOutputs(*(field.float() for field in outputs["grid"]))
        steps = torch.arange(self.side, device=grid.boxes.device)
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        corners = torch.stack([columns, rows], -1).view(-1, 1, 2)  # (cells, 1, 2)
        centres = (corners + grid.boxes[..., :2]) * STRIDE
        sides = grid.boxes[..., 2:].square() * self.image_size
        scores = grid.confidences[..., None] * grid.classes[:, :, None]  # (B, cells, n, K)
        return _corners(torch.cat([centres, sides], -1)).flatten(1, 2), scores.flatten(1, 2)

    def class_parameters(self) -> list[str]:
        """Names of the parameters that a change of classes replaces."""
        return output_parameters(self)


def _corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as centre and sides -> as corners."""
    centres, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)
