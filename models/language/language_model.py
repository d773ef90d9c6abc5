"""What every language model is: a network from token batches to raw outputs, with an exact loss and an encoder."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.loss_term import LossTerm

IGNORE = -100  # a target that does not count

Batch = dict[str, Tensor]


class LanguageModel(nn.Module, ABC):
    """Interface of language models: causal (GPT, LSTM), of both directions (ELMo) or masked (BERT).

    Attributes:
        vocab_size: number of tokens that are predicted.
        hidden_size: width of what `encode` returns.
        context_length: the most tokens that `forward` can take account of; None where there is no bound.
        perplexities: loss term, where it is a mean negative log-likelihood per token -> what its perplexity is called.
    """

    vocab_size: int
    hidden_size: int
    context_length: int | None = None
    perplexities: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def forward(self, batch: Batch, state: Any = None) -> tuple[Batch, Any]:
        """Raw outputs and the new state.

        Args:
            batch: at least `input_ids` (B, T) int64 (`character_ids` for models of characters), and whatever else the
                task's batches hold.
            state: what the call before returned, of the text to the left of this batch: the recurrent state of a
                recurrent network, the cache of a causal transformer. None: nothing is to the left. Rows where
                `batch["fresh"]` is true start anew.

        Returns:
            The outputs, of causal models among them `logits` (B, T, vocab_size), and the new state. A transformer that
            was given None returns None: it keeps a cache only for who starts with `initial_state`.
        """

    @abstractmethod
    def loss_terms(self, outputs: Batch, batch: Batch) -> dict[str, LossTerm]:
        """The parts of the loss by name: per row the summed negative log-likelihood in nats and the targets counted."""

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Contextual vectors (B, T, hidden_size) of the tokens; what padded positions hold has no meaning."""

    def initial_state(self) -> Any:
        """The state to start reading a text piece by piece with; None where `forward` takes None for it."""
        return None

    def flops(self, batch: Batch) -> float | Tensor | None:
        """Floating-point operations of a forward pass in matrix products, 2 a multiply-add; None where unknown.

        Attention counts as if every token saw all tokens of its row, as is customary also for causal models.
        """
        return None

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that `encode` does not use, only the prediction of tokens."""
        return []

    def correct(self, outputs: Batch, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Hits and counts per row, (B,) int64 each, by the name of the accuracy; empty where no accuracy is of use."""
        return {}


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, 0 where the target is `IGNORE`.

    Args:
        logits: (..., classes) of any floating type.
        targets: (...) int64.

    Returns:
        (...) float32.
    """
    flat = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(targets.shape)


def nll_term(logits: Tensor, targets: Tensor, *, offset: float = 0.0) -> LossTerm:
    """The mean negative log-likelihood of the targets of (B, T) that count, as sums per row.

    Args:
        logits: (B, T, classes).
        targets: (B, T) int64, `IGNORE` where nothing counts.
        offset: see `LossTerm`.
    """
    return LossTerm(token_nll(logits, targets).sum(-1), (targets != IGNORE).sum(-1).float(), 1.0, offset)
