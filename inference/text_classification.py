"""Classify texts in one call."""

from collections.abc import Sequence
from typing import Any

import torch

from datamodules.text.classification import RowEncoder, TextRows, collate_texts
from datamodules.text.making import from_state
from models.language.classifier import TextClassifier, classified


class TextClassificationPredictor:
    """A classifier with the tokeniser that it was trained with; see `inference.load`.

    Args:
        network: in evaluation mode.
        data: the description of the data it was trained with: `tokenizer`, `class_names`, `context`, `characters`.
        batch_size: texts at once.
    """

    def __init__(self, network: TextClassifier, data: dict[str, Any], *, batch_size: int = 32) -> None:
        self.network = network
        self.class_names: list[str] = data["class_names"]
        self.tokenizer = from_state(data["tokenizer"])
        self.encoder = RowEncoder(self.tokenizer, context=data["context"], characters=data["characters"])
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
        """Classify.

        Args:
            texts: sentences, or pairs of them.

        Returns:
            Per text its `label` and the `probabilities` by class, or, of regression, its `value`.
        """
        pairs = [(text, "") if isinstance(text, str) else text for text in texts]
        rows = TextRows(self.encoder.encode(pairs), self.encoder)
        device = next(self.network.parameters()).device
        results: list[dict[str, Any]] = []
        for start in range(0, len(rows), self.batch_size):
            samples = [rows[0, i] for i in range(start, min(start + self.batch_size, len(rows)))]
            batch = collate_texts(samples, pad=self.tokenizer.pad or 0)
            logits = self.network({name: value.to(device) for name, value in batch.items()})["logits"]
            results += classified(logits, self.class_names)
        return results
