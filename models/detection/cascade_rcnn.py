"""Cascade R-CNN (Cai and Vasconcelos: "Cascade R-CNN: Delving into High Quality Object Detection", CVPR 2018)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from errors import UserError
from models.detection.faster_rcnn import Norm, resnet50
from models.detection.proposals import ProposalSelector
from models.detection.roi.cascade import CascadeRoIHead
from models.detection.rpn import RPN
from models.detection.two_stage import TwoStageDetector
from models.necks import FPN, Neck


class Form(NamedTuple):
    """A published network with ResNet-50 and FPN, and what was published of it for 80 classes."""

    norm: Norm
    rpn: Callable[[int], nn.Module]
    roi_head: Callable[[int, int], nn.Module]
    parameters: int | None
    results: dict[str, float]


FORMS = {
    # MMDetection's model zoo says 69.17 M: it leaves out the 225,344 parameters of the frozen stem and first stage.
    "mmdetection": Form(
        "batch",
        partial(RPN, selector=ProposalSelector(max_proposals=(2000, 1000)), smooth_l1_beta=1 / 9),
        partial(CascadeRoIHead, scores="own_boxes"),
        69_394_766,
        {"COCO val AP": 40.3},
    ),
    # Its published results are of a network with masks.
    "detectron2": Form(
        "frozen",
        partial(RPN, selector=ProposalSelector(max_proposals=(2000, 1000))),
        partial(
            CascadeRoIHead,
            loss_weights=(1.0, 1.0, 1.0),
            smooth_l1_beta=0.0,
            gradient_scale=1 / 3,
            resample=False,
            scores="own_boxes",
        ),
        None,
        {},
    ),
}

# Three classifiers have a row of 1024 weights and a bias for each class; their box codes serve all classes.
PARAMETERS_PER_CLASS = 3 * 1025


class CascadeRCNN(TwoStageDetector):
    """Cascade R-CNN as published, any part of which can be replaced.

    The paper's own code scores the last boxes by all classifiers, which is `CascadeRoIHead`'s default.

    Args:
        num_classes: K.
        form: a key of `FORMS`.
        pretrained_backbone: load ImageNet weights into the form's ResNet-50, and freeze its stem and first stage.
        norm: `frozen` makes the backbone's batch normalisation a fixed affine map, which needs pretrained weights;
            `batch` trains it; None is the form's.
        image_size: side in pixels of the input.
        backbone: None is the form's, like the parts below; see `TwoStageDetector`.
        neck: called with the backbone's channels.
        rpn: called with the channels of the features.
        roi_head: called with (the channels of the features, K).

    Raises:
        UserError: no such form.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        form: str = "mmdetection",
        pretrained_backbone: bool = False,
        norm: Norm | None = None,
        image_size: int = 800,
        backbone: nn.Module | None = None,
        neck: Callable[[list[int]], Neck] | None = None,
        rpn: Callable[[int], nn.Module] | None = None,
        roi_head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"Cascade R-CNN has no form {form!r}: choose one of {', '.join(FORMS)}")
        row = FORMS[form]
        as_published = norm in (None, row.norm) and image_size == 800
        as_published &= backbone is neck is rpn is roi_head is None
        super().__init__(
            num_classes=num_classes,
            image_size=image_size,
            backbone=backbone or resnet50((1, 2, 3, 4), pretrained_backbone, norm or row.norm),
            neck=neck or partial(FPN, extra="pool"),
            rpn=rpn or row.rpn,
            roi_head=roi_head or row.roi_head,
        )
        self.form = form
        self.as_published = as_published

    @property
    def published(self) -> dict[str, int | float]:
        """What the authors report, their counts for this number of classes; nothing for a network of other parts."""
        row = FORMS[self.form]
        if not self.as_published or row.parameters is None:
            return {}
        return {"parameters": row.parameters + (self.num_classes - 80) * PARAMETERS_PER_CLASS, **row.results}
