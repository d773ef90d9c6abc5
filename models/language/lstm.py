"""LSTM language models, with what AWD-LSTM does against overfitting (Merity et al. 2018)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.language.language_model import IGNORE, Batch, LanguageModel, nll_term
from models.loss_term import LossTerm

# Parameters of AWD-LSTM by its vocabulary, and the perplexity of the test split (Merity et al. 2018, tables 1 and 2).
PUBLISHED = {
    10_000: {"parameters": 24_221_600, "Penn Treebank perplexity": 57.3},
    33_278: {"parameters": 33_556_078, "WikiText-2 perplexity": 65.8},
}

State = list[tuple[Tensor, Tensor]]  # per layer the outputs and the cells, (B, width) each


class LSTM(LanguageModel):
    """Stacked LSTMs between a word embedding and an output layer that is its transpose.

    The state goes on from batch to batch, and gradients end where a batch begins. All of the options that make it an
    AWD-LSTM are on by default, at the paper's values for WikiText-2; at 0 they leave a plain LSTM.

    It reads whatever stream its batches are: a model of backward text is this one on data that runs backward
    (`data.backward true`).

    Args:
        vocab_size: number of tokens.
        embedding_size: width E of a token's vector.
        cells: width of the inner layers; the last one is as wide as the embedding if that is tied.
        layers: number of LSTM layers.
        tied: whether the output layer shares the embedding's weights.
        dropout: of the last layer's output. Like all of the next but `word_dropout` and `weight_dropout`, one mask
            holds for all steps of a row ("locked", Gal and Ghahramani 2016).
        hidden_dropout: of what passes from layer to layer.
        input_dropout: of the embedded tokens.
        word_dropout: share of the words whose vectors are zero throughout a batch.
        weight_dropout: share of the recurrent weights that are zero throughout a batch.
        activation_penalty: factor of the mean square of the last layer's output, behind its dropout ("AR").
        change_penalty: factor of the mean square of its change from step to step, before dropout ("TAR").
    """

    perplexities = {"next_token_loss": "perplexity"}

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_size: int = 400,
        cells: int = 1150,
        layers: int = 3,
        tied: bool = True,
        dropout: float = 0.4,
        hidden_dropout: float = 0.2,
        input_dropout: float = 0.65,
        word_dropout: float = 0.1,
        weight_dropout: float = 0.5,
        activation_penalty: float = 2.0,
        change_penalty: float = 1.0,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dropout = dropout
        self.hidden_dropout = hidden_dropout
        self.input_dropout = input_dropout
        self.word_dropout = word_dropout
        self.weight_dropout = weight_dropout
        self.activation_penalty = activation_penalty
        self.change_penalty = change_penalty
        self.hidden_size = embedding_size if tied else cells
        widths = [embedding_size, *[cells] * (layers - 1), self.hidden_size]
        self.tokens = nn.Embedding(vocab_size, embedding_size)
        self.lstms = nn.ModuleList(nn.LSTM(before, after, batch_first=True) for before, after in pairwise(widths))
        self.head = nn.Linear(self.hidden_size, vocab_size)
        if tied:
            self.head.weight = self.tokens.weight
        self.reset_parameters()

    @property
    def published(self) -> dict[str, int | float]:
        """What was reported of AWD-LSTM, for `tools.model_table`; nothing of other sizes."""
        sizes = [(lstm.input_size, lstm.hidden_size) for lstm in self.lstms]
        return PUBLISHED.get(self.vocab_size, {}) if sizes == [(400, 1150), (1150, 1150), (1150, 400)] else {}

    def reset_parameters(self) -> None:
        """Fill with fresh random weights."""
        nn.init.uniform_(self.tokens.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        for lstm in self.lstms:
            lstm.reset_parameters()

    def initial_state(self, rows: int = 1) -> State:
        """Zeros: nothing was read."""
        zeros = self.tokens.weight.new_zeros
        return [(zeros(rows, lstm.hidden_size), zeros(rows, lstm.hidden_size)) for lstm in self.lstms]

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Batch, State]:
        """`logits` (B, T, vocab_size) of the token after each one; in training also `activation` and `change` (B,).

        Args:
            batch: `input_ids` (B, T), and `fresh` (B,) bool, without which all rows go on from the state.
            state: None: all rows are fresh.
        """
        raw, dropped, state = self._run(batch, state)
        outputs = {"logits": self.head(dropped)}
        if self.training:
            outputs["activation"] = dropped.float().square().mean((1, 2))
            changes = (raw[:, 1:] - raw[:, :-1]).float().square().sum((1, 2))
            outputs["change"] = changes / max(raw[0, 1:].numel(), 1)
        return outputs, state

    def encode(self, batch: Batch) -> Tensor:
        """The last layer's output (B, T, hidden_size), of rows that stand by themselves."""
        return self._run({"input_ids": batch["input_ids"]}, None)[1]

    def head_parameters(self) -> list[nn.Parameter]:
        """The output layer's, but for what is tied."""
        return [self.head.bias] if self.head.weight is self.tokens.weight else list(self.head.parameters())

    def loss_terms(self, outputs: Batch, batch: Batch) -> dict[str, LossTerm]:
        """`next_token_loss`, the mean negative log-likelihood of `targets` (B, T); in training the penalties."""
        terms = {"next_token_loss": nll_term(outputs["logits"], batch["targets"])}
        for name, factor in (("activation", self.activation_penalty), ("change", self.change_penalty)):
            if self.training and factor:
                terms[f"{name}_penalty"] = LossTerm(outputs[name], torch.ones_like(outputs[name]), factor, 0.0)
        return terms

    def correct(self, outputs: Batch, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """`next_token_accuracy`."""
        counted = batch["targets"] != IGNORE
        hits = (outputs["logits"].argmax(-1) == batch["targets"]) & counted
        return {"next_token_accuracy": (hits.sum(-1), counted.sum(-1))}

    def _run(self, batch: Batch, state: State | None) -> tuple[Tensor, Tensor, State]:
        """The last layer's output before and behind its dropout, and the new state."""
        state = self._begin(batch, state)
        x = self._locked(self._embed(batch["input_ids"]), self.input_dropout)
        new_state = []
        for i, (lstm, (output, cell)) in enumerate(zip(self.lstms, state, strict=True)):
            if i:
                x = self._locked(x, self.hidden_dropout)
            x, output, cell = self._lstm(lstm, x, output, cell)
            new_state.append((output, cell))
        return x, self._locked(x, self.dropout), new_state

    def _begin(self, batch: Batch, state: State | None) -> State:
        if state is None:
            return self.initial_state(len(batch["input_ids"]))
        if "fresh" not in batch:
            return state
        goes_on = (~batch["fresh"])[:, None]
        return [tuple(part * goes_on.to(part.dtype) for part in layer) for layer in state]

    def _embed(self, ids: Tensor) -> Tensor:
        weight = self.tokens.weight
        if self.training and self.word_dropout:
            kept = F.dropout(weight.new_ones(len(weight), 1), self.word_dropout)
            return F.embedding(ids, weight) * F.embedding(ids, kept)
        return F.embedding(ids, weight)

    def _locked(self, x: Tensor, share: float) -> Tensor:
        """Dropout of (B, T, width) with one mask for all T."""
        if not self.training or not share:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, x.shape[2]), share)

    def _lstm(self, lstm: nn.LSTM, x: Tensor, output: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0]
        if self.training and self.weight_dropout:
            weights[1] = F.dropout(weights[1], self.weight_dropout)
        # (input, state, weights, with biases, layers, dropout, training, bidirectional, batch first)
        x, output, cell = torch.lstm(x, (output[None], cell[None]), weights, True, 1, 0.0, self.training, False, True)
        return x, output[0], cell[0]
