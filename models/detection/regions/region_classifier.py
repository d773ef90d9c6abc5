"""What R-CNN and SPPNet share: regions become vectors, which softmax, then linear SVMs and ridge regression, read."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.box_coder import MAX_LOG_RATIO, BoxCoder
from models.detection.boxes import pairwise_iou
from models.detection.detector import Detections, Detector, Targets
from models.detection.matcher import IGNORED, NEGATIVE
from models.detection.postprocessing.nms import HardNMS
from models.detection.regions.given_proposals import given_proposals
from models.detection.roi.roi_head import ClassPredictor, class_scores
from models.detection.roi.roi_postprocess import RoIPostprocessor
from models.detection.sampler import RandomSampler
from models.loss_term import LossTerm

PASS = 256  # regions that go through the network at once outside training


class Regions(NamedTuple):
    """Vectors of N regions.

    Attributes:
        pooled: (N, D5), pool5 laid flat: what boxes are regressed from.
        vectors: (N, D7), fc7 after its ReLU: what is classified.
    """

    pooled: Tensor
    vectors: Tensor


class RegionClassifier(Detector):
    """Base class; a detector defines `pool`.

    It learns in two stages. First the network by softmax on sampled regions ("fine-tuning"); the detections are then
    the proposals as they are, by their softmax. After that a linear SVM per class on fc7 and a ridge regression per
    class on pool5, which `set_stage` puts in place and from then on detections come from. Its weights are buffers:
    they are in the checkpoint, and no optimiser moves them.

    Args:
        num_classes: K.
        image_size: see `Detector`, like `mean` and `std`.
        pooled: the shape of a region's pool5: (channels, cells per side).
        box_head: called with these two; has `channels`; (N, C, S, S) -> (N, D7).
        sampler: of the regions of a training batch, drawn from all of its pictures together (128, 32 of them positive).
        positive_iou: regions that overlap an object as much are positive.
        min_negative_iou: regions that overlap all objects less take no part.
        postprocessor: None suppresses above an overlap of .3.
    """

    EVALUATED = 32  # regions per picture in the loss of a validation

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        pooled: tuple[int, int],
        box_head: Callable[[int, int], nn.Module],
        sampler: RandomSampler | None = None,
        positive_iou: float = 0.5,
        min_negative_iou: float = 0.0,
        postprocessor: RoIPostprocessor | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(num_classes=num_classes, image_size=image_size, size_divisor=1, mean=mean, std=std)
        self.box_head = box_head(*pooled)
        self.classifier = ClassPredictor(self.box_head.channels, num_classes)
        self.sampler = sampler or RandomSampler(size=128, positive_fraction=0.25)
        self.eval_sampler = RandomSampler(size=self.EVALUATED, positive_fraction=0.25)
        self.positive_iou = positive_iou
        self.min_negative_iou = min_negative_iou
        self.box_coder = BoxCoder(y_first=False, max_log_ratio=MAX_LOG_RATIO)
        self.postprocessor = postprocessor or RoIPostprocessor(score_threshold=0.01, nms=HardNMS(iou_threshold=0.3))
        size = pooled[0] * pooled[1] ** 2
        self.register_buffer("svm_fitted", torch.tensor(0))
        self.register_buffer("svm_weight", torch.zeros(num_classes, self.box_head.channels))
        self.register_buffer("svm_bias", torch.zeros(num_classes))
        self.register_buffer("ridge_weight", torch.zeros(num_classes, 4, size))
        self.register_buffer("ridge_bias", torch.zeros(num_classes, 4))

    @abstractmethod
    def pool(self, outputs: dict[str, Any], image: Tensor, boxes: Tensor, image_size: Tensor) -> Tensor:
        """Features of one size for regions of any size.

        Args:
            outputs: of `forward`.
            image: (N,) int64, the picture of each region.
            boxes: (N, 4) XYXY.
            image_size: (B, 2).

        Returns:
            (N, C, S, S).
        """

    def describe(self, outputs: dict[str, Any], image: Tensor, boxes: Tensor, image_size: Tensor) -> Regions:
        """The vectors of regions; arguments as of `pool`."""
        pooled = self.pool(outputs, image, boxes, image_size)
        return Regions(pooled.flatten(1), self.box_head(pooled))

    def loss_terms(self, outputs: dict[str, Any], targets: Targets, image_size: Tensor) -> dict[str, LossTerm]:
        """The term `class_loss`, cross-entropy divided by the number of sampled regions.

        In training the objects join the proposals, and regions are drawn from all pictures of the batch together. In
        evaluation a fixed choice of each picture's own proposals counts, so that the loss depends on no other picture.

        Args:
            outputs: of `forward`, with `proposals`; see `given_proposals`.
            targets: with at least one place per image; crowds and padding are left out.
            image_size: (B, 2).
        """
        boxes, valid = given_proposals(outputs)
        if self.training:
            boxes = torch.cat([boxes, targets["boxes"]], 1)
            valid = torch.cat([valid, (targets["labels"] >= 0) & ~targets["iscrowd"]], 1)
            labels = self.assign(boxes, valid, targets)
            index, taken, _ = self.sampler(labels.view(1, -1))
            index = index[taken]
            image = index // boxes.shape[1]
            regions = self.describe(outputs, image, boxes.flatten(0, 1)[index], image_size)
            logits, labels = self.classifier(regions.vectors), labels.flatten()[index]
        else:
            labels = self.assign(boxes, valid, targets)
            index, taken, _ = self.eval_sampler(labels, deterministic=True)
            image = taken.nonzero()[:, 0]
            logits = self._predictions(outputs, image_size)[0][image, index[taken]]
            labels = labels[image, index[taken]]
        loss = F.cross_entropy(logits.float(), labels.where(labels >= 0, self.num_classes), reduction="none")
        per_image = loss.new_zeros(len(valid))
        count = per_image.index_add(0, image, torch.ones_like(loss)).clamp(min=1)
        return {"class_loss": LossTerm(per_image.index_add(0, image, loss), count, 1.0, 0.0)}

    @torch.no_grad()
    def assign(self, boxes: Tensor, valid: Tensor, targets: Targets) -> Tensor:
        """The class of each region: (B, P) int64, NEGATIVE where it is background, IGNORED where it takes no part."""
        real = (targets["labels"] >= 0) & ~targets["iscrowd"]
        objects = targets["boxes"].where(real[..., None], 0)  # an empty box overlaps nothing
        iou, match = pairwise_iou(objects, boxes).max(1)
        labels = targets["labels"].gather(1, match).where(iou >= self.positive_iou, NEGATIVE)
        return labels.where(valid & (iou >= self.min_negative_iou), IGNORED)

    def detect(self, outputs: dict[str, Any], image_size: Tensor) -> Detections:
        """Detections from `outputs` with `proposals`, clipped to `image_size` (B, 2).

        The score of an SVM's margin m is 1 / (1 + exp(-2 m)): .5 on the separating plane, .88 and .12 on the margins.
        """
        boxes, valid = given_proposals(outputs)
        logits, margins, codes = self._predictions(outputs, image_size)
        if self.svm_fitted:
            scores = (2 * margins).sigmoid().where(valid[..., None], 0)
        else:
            scores, codes = class_scores(logits, valid), codes[..., :1]
        return self.postprocessor(scores, codes, boxes, self.box_coder, image_size)

    @torch.no_grad()
    def _predictions(self, outputs: dict[str, Any], image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, P, K + 1), margins (B, P, K) and codes (B, P, 4, K) of all proposals, 0 where padded.

        They are kept in `outputs`: a validation wants the losses and the detections of the same regions.
        """
        if "predictions" not in outputs:
            boxes, valid = given_proposals(outputs)
            image, place = valid.nonzero(as_tuple=True)
            parts: list[tuple[Tensor, Tensor, Tensor]] = []
            # The regions of a batch do not fit into memory at once.
            for some in torch.arange(len(image), device=image.device).split(PASS):
                regions = self.describe(outputs, image[some], boxes[image[some], place[some]], image_size)
                parts.append(
                    (
                        self.classifier(regions.vectors),
                        F.linear(regions.vectors, self.svm_weight, self.svm_bias),
                        torch.einsum("nd,kcd->nck", regions.pooled, self.ridge_weight) + self.ridge_bias.T,
                    )
                )
            shapes = ((self.num_classes + 1,), (self.num_classes,), (4, self.num_classes))
            results = [boxes.new_zeros(*valid.shape, *shape) for shape in shapes]
            for result, column in zip(results, zip(*parts, strict=True), strict=False):
                result[image, place] = torch.cat(column).float()
            outputs["predictions"] = tuple(results)
        return outputs["predictions"]

    def set_stage(self, state: dict[str, Tensor]) -> None:
        """Put the SVMs and the regressions in place.

        Args:
            state: `svm_weight` (K, D7), `svm_bias` (K,), `ridge_weight` (K, 4, D5) and `ridge_bias` (K, 4).
        """
        for name, value in state.items():
            getattr(self, name).copy_(value)
        self.svm_fitted.fill_(1)

    def stage_state(self) -> dict[str, Tensor]:
        """The buffers of the second stage by name, `svm_fitted` included."""
        names = ("svm_fitted", "svm_weight", "svm_bias", "ridge_weight", "ridge_bias")
        return {name: getattr(self, name) for name in names}

    def class_parameters(self) -> list[str]:
        """Names of the parameters and buffers that a change of classes replaces."""
        names = [f"classifier.{name}" for name in self.classifier.class_parameters]
        return [*names, "svm_weight", "svm_bias", "ridge_weight", "ridge_bias"]
