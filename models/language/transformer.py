"""What BERT and GPT share: attention over full, ragged and cached rows, and the transformer block.

Tokens are kept flat, (N, hidden), padding left out: every layer but attention works on single tokens, so that padding
costs nothing there. Only attention knows which tokens make up a row; it asks one of the three kinds of rows below.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError


class Rows(Protocol):
    """How flat tokens form rows, within which they attend to one another."""

    def attend(self, qkv: Tensor, dropout: float) -> Tensor:
        """Attention within rows.

        Args:
            qkv: (N, 3, heads, head size), queries, keys and values.
            dropout: of the attention weights.

        Returns:
            (N, heads, head size).
        """


class FullRows:
    """Rows of equal length without padding.

    Args:
        rows: B; the flat tokens are the (B, T) ones in order.
        causal: attend only to oneself and to the left.
    """

    def __init__(self, rows: int, *, causal: bool) -> None:
        self.rows = rows
        self.causal = causal

    def attend(self, qkv: Tensor, dropout: float) -> Tensor:
        """See `Rows`."""
        query, key, value = qkv.unflatten(0, (self.rows, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, size) each
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(0, 1)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return x.flatten(0, 1)

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...)."""
        return x.unflatten(0, (self.rows, -1))

    def locate(self, index: Tensor) -> Tensor:
        """Places among the N tokens of indices into the B * T ones."""
        return index


class RaggedRows:
    """Rows of their own lengths: the padded tokens are not among the N flat ones.

    On a CPU every row attends by itself, without a mask, which takes half the time of one padded call; an accelerator,
    which is slow at many small calls, pads the rows to the longest.

    Args:
        mask: (B, T) bool, false where padding is; it may lie anywhere.
        causal: attend only to oneself and to the left.
    """

    def __init__(self, mask: Tensor, *, causal: bool) -> None:
        self.mask = mask
        self.causal = causal
        self.index = mask.flatten().nonzero().squeeze(1)  # of the N tokens among the B * T
        lengths = mask.sum(1)
        self.row_lengths: list[int] = lengths.tolist()
        # Every row moved to the left: which places are taken then, and their indices among all. Once for all layers,
        # since finding them makes a GPU wait.
        self.inside = torch.arange(max(self.row_lengths), device=mask.device) < lengths[:, None]  # (B, longest)
        self.left_index = self.inside.flatten().nonzero().squeeze(1)  # (N,)

    def attend(self, qkv: Tensor, dropout: float) -> Tensor:
        """See `Rows`."""
        return self.attend_padded(qkv, dropout) if qkv.device.type != "cpu" else self.attend_by_row(qkv, dropout)

    def attend_by_row(self, qkv: Tensor, dropout: float) -> Tensor:
        """One call for each row."""
        mixed = []
        for row in qkv.split(self.row_lengths):
            query, key, value = row.permute(1, 2, 0, 3).unsqueeze(1)  # (1, heads, length, size) each
            result = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
            mixed.append(result[0].transpose(0, 1))
        return torch.cat(mixed)

    def attend_padded(self, qkv: Tensor, dropout: float) -> Tensor:
        """One call for all rows, each moved to the left and padded to the longest."""
        padded = qkv.new_zeros(self.inside.numel(), *qkv.shape[1:]).index_copy(0, self.left_index, qkv)
        padded = padded.unflatten(0, self.inside.shape)
        query, key, value = padded.permute(2, 0, 3, 1, 4)  # (B, heads, longest, size) each
        # With all padding on the right, a causal token never sees any.
        mask = None if self.causal else self.inside[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=self.causal
        )
        return mixed.transpose(1, 2).flatten(0, 1)[self.left_index]

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return x.flatten(0, 1)[self.index]

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zero where padding is."""
        full = x.new_zeros(self.mask.numel(), *x.shape[1:])
        return full.index_copy(0, self.index, x).unflatten(0, self.mask.shape)

    def locate(self, index: Tensor) -> Tensor:
        """Places among the N tokens of indices into the B * T ones."""
        return (self.mask.flatten().cumsum(0) - 1)[index]


def rows_of(input_ids: Tensor, mask: Tensor | None, *, causal: bool) -> FullRows | RaggedRows:
    """The rows of a batch: full ones if no token is padding.

    Args:
        input_ids: (B, T).
        mask: (B, T) bool, false where padding is, or None.
        causal: attend only to oneself and to the left.
    """
    if mask is None or bool(mask.all()):
        return FullRows(len(input_ids), causal=causal)
    return RaggedRows(mask, causal=causal)


class LayerCache:
    """Keys and values of all tokens so far, of one layer; new tokens attend to them and to one another, causally.

    Args:
        limit: the most tokens that a row can ever have.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.length = 0
        self.buffer: Tensor | None = None  # (2, B, heads, capacity, size)
        self.rows = 0

    def attend(self, qkv: Tensor, dropout: float) -> Tensor:
        """See `Rows`; the tokens are the (B, T) ones that follow those seen so far."""
        query, *new = qkv.unflatten(0, (self.rows, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, size) each
        past, tokens = self.length, query.shape[2]
        keys, values = self._append(torch.stack(new))
        mask = None
        if past and tokens > 1:
            mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=query.device).tril(past)
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=past == 0
        )
        return mixed.transpose(1, 2).flatten(0, 1)

    def _append(self, new: Tensor) -> Tensor:
        needed = self.length + new.shape[3]
        capacity = 0 if self.buffer is None else self.buffer.shape[3]
        if needed > capacity:  # doubled, so that a text of n tokens is copied O(log n) times
            grown = new.new_empty(*new.shape[:3], min(max(2 * capacity, needed, 64), self.limit), new.shape[4])
            if self.buffer is not None:
                grown[:, :, :, : self.length] = self.buffer[:, :, :, : self.length]
            self.buffer = grown
        self.buffer[:, :, :, self.length : needed] = new
        self.length = needed
        return self.buffer[:, :, :, :needed]


class KVCache:
    """What a causal transformer remembers of the text so far; filled in place by its `forward`, without gradients.

    Args:
        layers: number of layers.
        limit: the most tokens that a row can ever have.
    """

    def __init__(self, layers: int, limit: int) -> None:
        self.layers = [LayerCache(limit) for _ in range(layers)]

    def __len__(self) -> int:
        """Tokens of a row so far."""
        return self.layers[0].length

    def of_rows(self, rows: int) -> list[LayerCache]:
        """The caches of the layers, ready for a batch of that many rows."""
        for layer in self.layers:
            layer.rows = rows
        return self.layers


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values (Vaswani et al. 2017, section 3.2).

    Args:
        hidden_size: width of the tokens, a multiple of `heads`.
        heads: number of heads.
        dropout: of the attention weights.
    """

    def __init__(self, *, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        if hidden_size % heads:
            raise UserError(f"hidden_size {hidden_size} is no multiple of heads {heads}: change one of the two")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """(N, hidden) -> (N, hidden)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return self.out(rows.attend(qkv, self.dropout if self.training else 0.0).flatten(1))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each with a residual connection and layer normalisation.

    Args:
        hidden_size: width of the tokens.
        heads: number of attention heads.
        inner_size: width of the perceptron's inner layer.
        dropout: of what is added to the residual.
        attention_dropout: of the attention weights.
        gelu: `tanh`, the approximation that GPT-2 and BERT's last code use, or `erf`, the exact function.
        eps: of the layer normalisations.
        pre_norm: normalise what goes into attention and perceptron (GPT-2), rather than the sum behind (BERT).
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        heads: int,
        inner_size: int,
        dropout: float,
        attention_dropout: float,
        gelu: str,
        eps: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(hidden_size=hidden_size, heads=heads, dropout=attention_dropout)
        self.attention_norm = nn.LayerNorm(hidden_size, eps)
        self.inner = nn.Linear(hidden_size, inner_size)
        self.gelu = gelu_layer(gelu)
        self.outer = nn.Linear(inner_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """(N, hidden) -> (N, hidden)."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), rows))
            return x + self.dropout(self._mlp(self.mlp_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, rows)))
        return self.mlp_norm(x + self.dropout(self._mlp(x)))

    def flops(self, tokens: float | Tensor, pairs: float | Tensor) -> float | Tensor:
        """Floating-point operations of a forward pass in matrix products.

        Args:
            tokens: N.
            pairs: of a token and one that it attends to: the sum of the rows' squared lengths.
        """
        weights = sum(
            layer.weight.numel() for layer in (self.attention.qkv, self.attention.out, self.inner, self.outer)
        )
        return 2.0 * tokens * weights + 4.0 * pairs * self.outer.out_features

    def _mlp(self, x: Tensor) -> Tensor:
        return self.outer(self.gelu(self.inner(x)))


def gelu_layer(kind: str) -> nn.GELU:
    """GELU (Hendrycks and Gimpel 2016), exact (`erf`) or by its `tanh` approximation: up to 4.7e-4 apart."""
    if kind not in ("erf", "tanh"):
        raise UserError(f"there is no gelu {kind!r}: choose erf or tanh")
    return nn.GELU(approximate="none" if kind == "erf" else "tanh")


def check_length(input_ids: Tensor, past: int, context_length: int) -> None:
    """Raise a `UserError` where a row has more tokens than there are positions."""
    if past + input_ids.shape[1] > context_length:
        raise UserError(
            f"rows of {past + input_ids.shape[1]} tokens do not fit context_length {context_length}: "
            f"cut the text shorter or build the network for longer rows"
        )
