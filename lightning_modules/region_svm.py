"""R-CNN's and SPPNet's second stage: linear SVMs and box regressions, once the network is trained."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from callbacks.checkpoint_io import load_verified
from datamodules.collate import collate_detection
from datamodules.loader import EpochBatches, ResumableLoader
from lightning_modules.detection import DetectionModule
from models.detection.boxes import pairwise_iou
from models.detection.regions.box_ridge import fit_ridge
from models.detection.regions.linear_svm import HardNegativeSVM
from models.detection.regions.region_classifier import RegionClassifier, Regions

log = logging.getLogger(__name__)


class RegionSVMModule(DetectionModule):
    """Trains a `RegionClassifier`: the network by gradient steps, then what reads its vectors.

    Until the training ends, validations show the network's softmax. Then the weights of the best checkpoint are taken,
    SVMs and regressions are fitted to the training split as it is, without augmentation, and written into that
    checkpoint, which is validated and tested as any other. One process does it; the others wait.

    Args:
        network: the detector.
        svm_c: weight of the losses of an SVM beside its regulariser.
        svm_positive_weight: factor on the losses of objects.
        svm_bias_multiplier: the constant feature of the SVMs.
        svm_negative_iou: regions that overlap all objects of a class less are its negatives; positives are the objects
            themselves, and what is in between takes no part.
        svm_retrain_after: hard negatives of a class between two trainings of its SVM. An SVM passes over what it does
            not find hard: with few pictures it must be trained more often to be good in time.
        feature_norm: that features are scaled to, on the average.
        norm_pictures: from which the average is taken.
        ridge_iou: regions that overlap an object as much are regressed to it.
        ridge_penalty: of the regressions.
        **common: see `DetectionModule`.
    """

    def __init__(
        self,
        network: RegionClassifier,
        svm_c: float = 1e-3,
        svm_positive_weight: float = 2.0,
        svm_bias_multiplier: float = 10.0,
        svm_negative_iou: float = 0.3,
        svm_retrain_after: int = 2000,
        feature_norm: float = 20.0,
        norm_pictures: int = 200,
        ridge_iou: float = 0.6,
        ridge_penalty: float = 1000.0,
        **common: Any,
    ) -> None:
        super().__init__(network=network, **common)
        self.svm_options = {
            "c": svm_c,
            "positive_weight": svm_positive_weight,
            "bias_multiplier": svm_bias_multiplier,
            "retrain_after": svm_retrain_after,
        }
        self.svm_negative_iou = svm_negative_iou
        self.feature_norm = feature_norm
        self.norm_pictures = norm_pictures
        self.ridge_iou = ridge_iou
        self.ridge_penalty = ridge_penalty

    def on_train_start(self) -> None:
        """The SVMs of an earlier training do not fit the network that this one makes."""
        self.network.svm_fitted.fill_(0)

    def after_fit(self, checkpoint: str | None) -> None:
        """Fit SVMs and regressions, and write them into the best checkpoint; see `TaskModule.after_fit`."""
        trainer = self.trainer
        content = None
        if checkpoint:
            content = load_verified(Path(checkpoint))
            self.load_state_dict(content["state_dict"])
        state = None
        if trainer.is_global_zero:
            self.to(trainer.strategy.root_device)
            state = self._fit()
        state = trainer.strategy.broadcast(state)
        self.network.set_stage(state)
        if content is not None and trainer.is_global_zero:
            stage = {f"network.{name}": value.cpu() for name, value in self.network.stage_state().items()}
            content["state_dict"].update(stage)
            trainer.strategy.checkpoint_io.save_checkpoint(content, checkpoint)
        trainer.strategy.barrier()

    @torch.no_grad()
    def _fit(self) -> dict[str, Tensor]:
        """See `RegionClassifier.set_stage`."""
        self.network.eval()
        scales, objects, labels = self._objects()
        classes = self.network.num_classes
        svms = [HardNegativeSVM(objects[labels == k], **self.svm_options) for k in range(classes)]
        examples: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(classes)]
        for batch, outputs in self._batches("SVMs and box regressions"):
            boxes, valid = outputs["proposals"]
            for i, proposals in enumerate(boxes):
                proposals = proposals[valid[i]]
                regions = self._describe(outputs, batch, i, proposals)
                iou, nearest = self._overlaps(batch, i, proposals)
                vectors = (regions.vectors * scales.vectors).cpu().numpy()
                for k, svm in enumerate(svms):
                    svm.add(vectors[(iou[:, k] < self.svm_negative_iou).cpu().numpy()])
                    near = iou[:, k] >= self.ridge_iou
                    if near.any():
                        codes = self.network.box_coder.encode(nearest[near, k], proposals[near])
                        examples[k].append((_numpy(regions.pooled[near] * scales.pooled), _numpy(codes)))
        size = self.network.ridge_weight.shape[2]
        ridges = []
        for svm, found in zip(svms, examples, strict=True):
            svm.finish()
            empty = (np.zeros((0, size), np.float32), np.zeros((0, 4), np.float32))
            ridges.append(
                fit_ridge(*(np.concatenate(part) for part in zip(empty, *found, strict=True)), self.ridge_penalty)
            )
        log.info("%d SVMs on %d objects", classes, len(labels))
        return {
            # With the scale in them: the network's vectors stay as they are.
            "svm_weight": torch.from_numpy(np.stack([svm.weight for svm in svms])) * scales.vectors,
            "svm_bias": torch.tensor([svm.bias for svm in svms]),
            "ridge_weight": torch.from_numpy(np.stack([weight for weight, _ in ridges])) * scales.pooled,
            "ridge_bias": torch.from_numpy(np.stack([bias for _, bias in ridges])),
        }

    def _objects(self) -> tuple[Regions, np.ndarray, np.ndarray]:
        """Factors that bring features to their norm, the scaled vectors of all objects (n, D7), and labels (n,)."""
        vectors, labels = [], []
        norms = np.zeros((0, 2))
        every = max(self._pictures() // self.norm_pictures, 1)
        seen = 0
        for batch, outputs in self._batches("features of the objects"):
            boxes, valid = outputs["proposals"]
            for i, proposals in enumerate(boxes):
                real = self._real(batch, i)
                found = self._describe(outputs, batch, i, batch["targets"]["boxes"][i][real])
                vectors.append(_numpy(found.vectors))
                labels.append(_numpy(batch["targets"]["labels"][i][real]))
                if seen % every == 0:
                    regions = self._describe(outputs, batch, i, proposals[valid[i]])
                    norms = np.concatenate([norms, np.stack([_numpy(part.norm(dim=1)) for part in regions], 1)])
                seen += 1
        means = norms.mean(0) if len(norms) else np.ones(2)
        scales = Regions(*(self.feature_norm / max(float(mean), 1e-8) for mean in means))
        return scales, np.concatenate(vectors) * np.float32(scales.vectors), np.concatenate(labels)

    def _describe(self, outputs: dict[str, Any], batch: dict[str, Any], i: int, boxes: Tensor) -> Regions:
        """The vectors of boxes (n, 4) of picture i."""
        image = torch.full((len(boxes),), i, device=boxes.device)
        parts = [
            self.network.describe(outputs, image[some], boxes[some], batch["image_size"])
            for some in torch.arange(len(boxes), device=boxes.device).split(256)
        ]
        return Regions(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _overlaps(self, batch: dict[str, Any], i: int, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """IoU (P, K) of boxes with the nearest object of each class, 0 where there is none, and that one (P, K, 4)."""
        real = self._real(batch, i)
        objects, labels = batch["targets"]["boxes"][i][real], batch["targets"]["labels"][i][real]
        iou = boxes.new_zeros(len(boxes), self.network.num_classes)
        nearest = boxes[:, None].repeat(1, self.network.num_classes, 1)
        for k in labels.unique().tolist():
            mine = objects[labels == k]
            iou[:, k], match = pairwise_iou(boxes[None], mine[None])[0].max(1)
            nearest[:, k] = mine[match]
        return iou, nearest

    def _real(self, batch: dict[str, Any], i: int) -> Tensor:
        return (batch["targets"]["labels"][i] >= 0) & ~batch["targets"]["iscrowd"][i]

    def _pictures(self) -> int:
        """How many pictures of the training split are looked at: all, unless the training was limited."""
        data, trainer = self.trainer.datamodule, self.trainer
        if trainer.limit_train_batches == 1.0 and isinstance(trainer.limit_train_batches, float):
            return data.size("train")
        return min(data.size("train"), int(trainer.num_training_batches) * data.batch_size)

    def _batches(self, what: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Batches of the training split in order, on the device, with the network's outputs."""
        data = self.trainer.datamodule
        dataset = data.dataset("train", augmented=False)
        keys = EpochBatches(length=self._pictures(), batch_size=data.eval_batch_size, training=False, rank=0, world=1)
        loader = ResumableLoader(dataset, keys, collate=collate_detection, num_workers=data.num_workers)
        for batch in tqdm(loader, desc=what, leave=False, mininterval=1):
            batch = self.transfer_batch_to_device(batch, self.trainer.strategy.root_device, 0)
            yield batch, self._forward(batch)


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
