"""Classifiers of texts on top of a pretrained language model, and the baseline that only counts words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError
from models.language.language_model import Batch, LanguageModel
from models.language.scalar_mix import ScalarMix
from models.loss_term import LossTerm


class TextClassifier(nn.Module, ABC):
    """What every classifier of texts is: a network from a batch to scores, with an exact loss.

    Args:
        num_classes: number of classes; 1 is regression.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, batch: Batch) -> Batch:
        """`logits` (B, num_classes): scores of the classes, or the number that is asked for."""

    def loss_terms(self, outputs: Batch, batch: Batch) -> dict[str, LossTerm]:
        """`cross_entropy` in nats, or of regression `squared_error`: means over texts.

        Args:
            outputs: what `forward` returned.
            batch: `labels` (B,), int64, or float32 for regression.
        """
        logits, labels = outputs["logits"].float(), batch["labels"]
        if self.num_classes == 1:
            name, loss = "squared_error", (logits[:, 0] - labels.float()).square()
        else:
            name, loss = "cross_entropy", F.cross_entropy(logits, labels, reduction="none")
        return {name: LossTerm(loss, torch.ones_like(loss), 1.0, 0.0)}


class SequenceClassifier(TextClassifier):
    """A language model, fine-tuned or as it is, with a linear layer on one vector for the whole text.

    Args:
        num_classes: see `TextClassifier`.
        encoder: the language model. Its heads, which predict tokens, are kept but not trained.
        pooling: where the vector comes from: the `first` token by the encoder's own pooler, as in BERT; the `last`
            token, which alone has seen the whole text of a causal model; the `mean` or `max` over all tokens.
        mix_layers: learn a mixture of the encoder's layers, as ELMo is used, rather than taking its last one.
        train_encoder: fine-tune the encoder; otherwise it stays as it is, without dropout.
        dropout: of the vector.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        encoder: LanguageModel,
        pooling: Literal["first", "last", "mean", "max"] = "first",
        mix_layers: bool = False,
        train_encoder: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        if pooling == "first" and getattr(encoder, "pooler", None) is None:
            raise UserError(
                f"pooling 'first' needs an encoder with a pooler, which this {type(encoder).__name__} lacks: build "
                "BERT with next_sentence true, or take pooling last, mean or max"
            )
        if mix_layers and not hasattr(encoder, "layers"):
            raise UserError(f"mix_layers needs an encoder that gives all its layers, as ELMo: {type(encoder).__name__}")
        self.encoder = encoder
        self.pooling = pooling
        self.train_encoder = train_encoder
        self.mix = ScalarMix(encoder.num_layers) if mix_layers else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.hidden_size, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.head.bias)
        for parameter in encoder.head_parameters() if train_encoder else encoder.parameters():
            parameter.requires_grad_(False)
        if not train_encoder and pooling == "first":  # made for this very use, and often not pretrained
            encoder.pooler.requires_grad_(True)

    def train(self, mode: bool = True) -> "SequenceClassifier":
        """As usual, but an encoder that is not trained stays in evaluation."""
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def forward(self, batch: Batch) -> Batch:
        """See `TextClassifier`.

        Args:
            batch: what the encoder's `encode` takes, and `attention_mask` (B, T) bool.
        """
        mask = batch["attention_mask"]
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            x = self.encoder.encode(batch) if self.mix is None else self.encoder.layers(batch)
        if self.mix is not None:
            x = self.mix(x, mask)
        return {"logits": self.head(self.dropout(self._pooled(x, mask)))}

    def _pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, hidden) -> (B, hidden)."""
        if self.pooling == "first":
            return self.encoder.pooler(x[:, 0])
        if self.pooling == "last":
            last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
            return x[torch.arange(len(x), device=x.device), last]
        if self.pooling == "max":
            return x.masked_fill(~mask[..., None], float("-inf")).amax(1)
        kept = mask[..., None].to(x.dtype)
        return (x * kept).sum(1) / kept.sum(1)


class BagOfWords(TextClassifier):
    """Logistic (or linear) regression on which tokens a text has: what a pretrained model has to beat.

    A token that is there counts once, and a text's tokens together have length 1. The first and the second text of a
    pair have weights of their own.

    Args:
        num_classes: see `TextClassifier`.
        vocab_size: number of tokens.
    """

    def __init__(self, *, num_classes: int, vocab_size: int) -> None:
        super().__init__(num_classes)
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.zeros(2 * vocab_size, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, batch: Batch) -> Batch:
        """See `TextClassifier`.

        Args:
            batch: `input_ids` and `token_type_ids` (B, T) int64, `attention_mask` (B, T) bool.
        """
        nothing = 2 * self.vocab_size  # sorts behind all tokens
        words = (batch["input_ids"] + self.vocab_size * batch["token_type_ids"]).masked_fill(
            ~batch["attention_mask"], nothing
        )
        words = words.sort(1).values
        first = torch.ones_like(words, dtype=torch.bool)
        first[:, 1:] = words[:, 1:] != words[:, :-1]
        present = (first & (words < nothing)).to(self.weight.dtype)
        scores = (F.embedding(words.clamp(max=nothing - 1), self.weight) * present[..., None]).sum(1)
        return {"logits": scores / present.sum(1, keepdim=True).clamp(min=1).sqrt() + self.bias}


def classified(logits: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """What scores say of each text, in plain types.

    Args:
        logits: (B, classes).
        class_names: of the classes; none for regression.

    Returns:
        Per text its `label` and the `probabilities` by class, or its `value`.
    """
    if not class_names:
        return [{"value": value} for value in logits[:, 0].tolist()]
    rows = logits.float().softmax(1)
    labels = [class_names[i] for i in rows.argmax(1).tolist()]
    return [
        {"label": label, "probabilities": dict(zip(class_names, row, strict=True))}
        for label, row in zip(labels, rows.tolist(), strict=True)
    ]
