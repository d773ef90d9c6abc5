"""BERT: the bidirectional transformer with masked-word and next-sentence heads (Devlin et al. 2018)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError
from models.language.language_model import IGNORE, Batch, LanguageModel, token_nll
from models.language.transformer import Block, FullRows, RaggedRows, check_length, gelu_layer, rows_of
from models.loss_term import LossTerm

# Published sizes, as arguments of BERT: the paper's base and large, and the smaller ones of Turc et al. 2019.
BERT_SIZES = {
    "tiny": {"layers": 2, "heads": 2, "hidden_size": 128},
    "mini": {"layers": 4, "heads": 4, "hidden_size": 256},
    "small": {"layers": 4, "heads": 8, "hidden_size": 512},
    "medium": {"layers": 8, "heads": 8, "hidden_size": 512},
    "base": {"layers": 12, "heads": 12, "hidden_size": 768},
    "large": {"layers": 24, "heads": 16, "hidden_size": 1024},
}
PUBLISHED = {"base": 110_106_428, "large": 336_226_108}  # parameters with both heads, vocabulary of 30,522
EPS = 1e-12  # of all layer normalisations


class Pooler(nn.Module):
    """A row's vector from that of its first token: (B, hidden) -> (B, hidden)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """Dense layer and tanh."""
        return self.dense(first).tanh()


class MaskedHead(nn.Module):
    """Scores of all tokens for masked positions; the output layer is the token embedding with a bias of its own."""

    def __init__(self, *, vocab_size: int, hidden_size: int, gelu: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.gelu = gelu_layer(gelu)
        self.norm = nn.LayerNorm(hidden_size, EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(M, hidden) and the embedding (vocab_size, hidden) -> (M, vocab_size)."""
        return F.linear(self.norm(self.gelu(self.dense(x))), tokens, self.bias)


class BERT(LanguageModel):
    """A post-normalised transformer encoder, pretrained on masked words and next sentences (Devlin et al. 2018).

    Padded tokens are left out of every layer and only the masked positions that count reach the product with the
    vocabulary. Weights begin normal with a deviation of 0.02, cut at two deviations, as in the published code.

    Args:
        vocab_size: number of tokens.
        size: `tiny`, `mini`, `small`, `medium`, `base` or `large`: what the next three are where they are None.
        layers: number of transformer blocks.
        heads: attention heads of a block.
        hidden_size: width of the tokens, a multiple of `heads`.
        inner_size: width of the perceptrons' inner layer; None is four times `hidden_size`.
        context_length: the most tokens of a row.
        token_types: number of segments that `token_type_ids` tell apart.
        dropout: of the embeddings and of what blocks add to the residual.
        attention_dropout: of the attention weights.
        gelu: `erf`, as in the paper's first code, or `tanh`, as in its last.
        next_sentence: have a pooler and a next-sentence head; without them, training is on masked words alone.

    Attributes:
        published: what was published of a network of these sizes: number of `parameters`.
    """

    # Of single guesses with both sides in view, hence no likelihood of a text: never to be read beside a perplexity.
    perplexities = {"masked_loss": "masked_perplexity"}

    def __init__(
        self,
        *,
        vocab_size: int,
        size: str = "base",
        layers: int | None = None,
        heads: int | None = None,
        hidden_size: int | None = None,
        inner_size: int | None = None,
        context_length: int = 512,
        token_types: int = 2,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        gelu: str = "erf",
        next_sentence: bool = True,
    ) -> None:
        super().__init__()
        if size not in BERT_SIZES:
            raise UserError(f"there is no BERT of size {size!r}: choose one of {', '.join(BERT_SIZES)}")
        usual = BERT_SIZES[size]
        layers, heads = layers or usual["layers"], heads or usual["heads"]
        hidden_size = hidden_size or usual["hidden_size"]
        own = {"layers": layers, "heads": heads, "hidden_size": hidden_size}
        whole = next_sentence and vocab_size == 30522 and own == usual and inner_size is None
        self.published = {"parameters": PUBLISHED[size]} if whole and size in PUBLISHED else {}
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.context_length = context_length
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        self.positions = nn.Embedding(context_length, hidden_size)
        self.token_types = nn.Embedding(token_types, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                hidden_size=hidden_size,
                heads=heads,
                inner_size=inner_size or 4 * hidden_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
                gelu=gelu,
                eps=EPS,
                pre_norm=False,
            )
            for _ in range(layers)
        )
        self.masked_head = MaskedHead(vocab_size=vocab_size, hidden_size=hidden_size, gelu=gelu)
        self.pooler = Pooler(hidden_size) if next_sentence else None
        self.next_sentence_head = nn.Linear(hidden_size, 2) if next_sentence else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill with fresh random weights."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, batch: Batch, state: Any = None) -> tuple[Batch, None]:
        """Scores at the masked positions and for the next sentence.

        Args:
            batch: `input_ids` (B, T), `masked_positions` (B, P), and optionally `token_type_ids` (B, T, default 0),
                `attention_mask` (B, T) bool and `masked_labels` (B, P).
            state: None; nothing is carried from batch to batch.

        Returns:
            `masked_logits` (M, vocab_size): of the M masked positions whose label is not `IGNORE`, row by row (all
            B * P without labels); `next_sentence_logits` (B, 2), unless the network is built without that head.

        Raises:
            UserError: there are more tokens than `context_length`.
        """
        rows, x = self._hidden(batch)
        positions = batch["masked_positions"]
        row_starts = torch.arange(len(positions), device=positions.device) * batch["input_ids"].shape[1]
        places = (positions + row_starts[:, None])[self._counted(batch)]
        outputs = {"masked_logits": self.masked_head(x[rows.locate(places)], self.tokens.weight)}
        if self.next_sentence_head is not None:
            outputs["next_sentence_logits"] = self.next_sentence_head(self.pooler(x[rows.locate(row_starts)]))
        return outputs, None

    def encode(self, batch: Batch) -> Tensor:
        """Hidden vectors (B, T, hidden_size) of the last layer, 0 where padding is."""
        rows, x = self._hidden(batch)
        return rows.unpack(x)

    def _hidden(self, batch: Batch) -> tuple[FullRows | RaggedRows, Tensor]:
        ids = batch["input_ids"]
        check_length(ids, 0, self.context_length)
        rows = rows_of(ids, batch.get("attention_mask"), causal=False)
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        types = batch.get("token_type_ids", torch.zeros_like(ids))
        x = self.tokens(rows.pack(ids)) + self.positions(rows.pack(position)) + self.token_types(rows.pack(types))
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, rows)
        return rows, x

    def flops(self, batch: Batch) -> float | Tensor:
        """See `LanguageModel`; padding costs nothing, and the vocabulary only where something is masked."""
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        lengths = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
        tokens, pairs = lengths.sum().float(), lengths.float().square().sum()
        masked = self._counted(batch).sum().float()
        head = self.hidden_size * (self.hidden_size + self.vocab_size)
        return sum(block.flops(tokens, pairs) for block in self.blocks) + 2.0 * masked * head

    def loss_terms(self, outputs: Batch, batch: Batch) -> dict[str, LossTerm]:
        """`masked_loss`, a mean over the masked positions, and, where the batch has pairs, `next_sentence_loss`."""
        counted = self._counted(batch)
        row = counted.nonzero()[:, 0]
        nll = token_nll(outputs["masked_logits"], batch["masked_labels"][counted])
        numerator = nll.new_zeros(len(counted)).index_add(0, row, nll)
        terms = {"masked_loss": LossTerm(numerator, counted.sum(1).float(), 1.0, 1e-5)}
        if self.next_sentence_head is not None and "next_sentence_label" in batch:
            label = batch["next_sentence_label"]
            nll = token_nll(outputs["next_sentence_logits"], label)
            terms["next_sentence_loss"] = LossTerm(nll, (label != IGNORE).float(), 1.0, 0.0)
        return terms

    def correct(self, outputs: Batch, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """`masked_accuracy` and, where the batch has pairs, `next_sentence_accuracy`."""
        counted = self._counted(batch)
        hits = torch.zeros_like(counted)
        hits[counted] = outputs["masked_logits"].argmax(-1) == batch["masked_labels"][counted]
        results = {"masked_accuracy": (hits.sum(1), counted.sum(1))}
        if self.next_sentence_head is not None and "next_sentence_label" in batch:
            label = batch["next_sentence_label"]
            right = outputs["next_sentence_logits"].argmax(-1) == label
            results["next_sentence_accuracy"] = (right.long(), (label != IGNORE).long())
        return results

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of the masked-word and the next-sentence head; the pooler belongs to the encoder."""
        heads = [self.masked_head] + [self.next_sentence_head] * (self.next_sentence_head is not None)
        return [parameter for head in heads for parameter in head.parameters()]

    @staticmethod
    def _counted(batch: Batch) -> Tensor:
        """(B, P) bool: the masked positions that count."""
        positions = batch["masked_positions"]
        return batch["masked_labels"] != IGNORE if "masked_labels" in batch else torch.ones_like(positions).bool()
