"""GPT-2: the causal transformer (Radford et al. 2019)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError
from models.language.language_model import IGNORE, Batch, LanguageModel, nll_term
from models.language.transformer import Block, KVCache, check_length, rows_of
from models.loss_term import LossTerm


class GPT2Size(NamedTuple):
    """A published size and what was reported of it; the parameters are those with the vocabulary of 50,257."""

    layers: int
    heads: int
    hidden_size: int
    parameters: int
    wikitext2_perplexity: float  # zero-shot, per word (Radford et al. 2019, table 3)
    openwebtext_loss: float  # of OpenAI's weights, nats per token (nanoGPT's README)


GPT2_VOCABULARY = 50_257
# By their names on the Hugging Face hub; the paper calls them 117M, 345M, 762M and 1542M.
GPT2_SIZES = {
    "gpt2": GPT2Size(12, 12, 768, 124_439_808, 29.41, 3.12),
    "gpt2-medium": GPT2Size(24, 16, 1024, 354_823_168, 22.76, 2.84),
    "gpt2-large": GPT2Size(36, 20, 1280, 774_030_080, 19.93, 2.67),
    "gpt2-xl": GPT2Size(48, 25, 1600, 1_557_611_200, 18.34, 2.54),
}


class GPT(LanguageModel):
    """A pre-normalised causal transformer whose output layer is the token embedding (Radford et al. 2019, section 2.3).

    Weights begin normal with a deviation of 0.02; those of the layers that write to the residual stream are smaller by
    sqrt(2 * layers), as many as there are writers.

    Args:
        vocab_size: number of tokens.
        size: `gpt2`, `gpt2-medium`, `gpt2-large` or `gpt2-xl`: what the next three are where they are None.
        layers: number of transformer blocks.
        heads: attention heads of a block.
        hidden_size: width of the tokens, a multiple of `heads`.
        context_length: the most tokens of a row.
        dropout: of the embeddings and of what blocks add to the residual.
        attention_dropout: of the attention weights.
        gelu: `tanh` (the approximation, as GPT-2 has it) or `erf`.
    """

    perplexities = {"next_token_loss": "perplexity"}

    def __init__(
        self,
        *,
        vocab_size: int,
        size: str = "gpt2",
        layers: int | None = None,
        heads: int | None = None,
        hidden_size: int | None = None,
        context_length: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        gelu: str = "tanh",
    ) -> None:
        super().__init__()
        if size not in GPT2_SIZES:
            raise UserError(f"there is no GPT of size {size!r}: choose one of {', '.join(GPT2_SIZES)}")
        self.size = GPT2_SIZES[size]
        layers, heads = layers or self.size.layers, heads or self.size.heads
        hidden_size = hidden_size or self.size.hidden_size
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.context_length = context_length
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        self.positions = nn.Embedding(context_length, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                hidden_size=hidden_size,
                heads=heads,
                inner_size=4 * hidden_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
                gelu=gelu,
                eps=1e-5,
                pre_norm=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_size, 1e-5)
        self.reset_parameters()

    @property
    def published(self) -> dict[str, int | float]:
        """What was reported of this size, for `tools.model_table`; nothing of sizes that nobody published."""
        attention = self.blocks[0].attention
        if (len(self.blocks), attention.heads, self.hidden_size) != self.size[:3] or self.vocab_size != GPT2_VOCABULARY:
            return {}
        return {
            "parameters": self.size.parameters,
            "WikiText-2 perplexity": self.size.wikitext2_perplexity,
            "OpenWebText loss": self.size.openwebtext_loss,
        }

    def reset_parameters(self) -> None:
        """Fill with fresh random weights."""
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "outer.weight")):
                nn.init.normal_(parameter, std=0.02 * (2 * len(self.blocks)) ** -0.5)
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def initial_state(self) -> KVCache:
        """An empty cache of keys and values, to read a text piece by piece."""
        return KVCache(len(self.blocks), self.context_length)

    def forward(self, batch: Batch, state: KVCache | None = None) -> tuple[Batch, KVCache | None]:
        """`logits` (B, T, vocab_size) of the token after each one.

        Args:
            batch: `input_ids` (B, T), and optionally `attention_mask` (B, T) bool for padding on the right.
            state: None: the rows are whole texts. Else they go on behind what is in the cache, which is extended;
                they must not be padded then.

        Raises:
            UserError: there are more tokens than `context_length`.
        """
        return {"logits": F.linear(self._hidden(batch, state), self.tokens.weight)}, state

    def encode(self, batch: Batch) -> Tensor:
        """Hidden vectors (B, T, hidden_size) behind the last normalisation, 0 where padding is."""
        return self._hidden(batch, None)

    def _hidden(self, batch: Batch, state: KVCache | None) -> Tensor:
        ids = batch["input_ids"]
        past = 0 if state is None else len(state)
        check_length(ids, past, self.context_length)
        rows = rows_of(ids, batch.get("attention_mask") if state is None else None, causal=True)
        position = torch.arange(past, past + ids.shape[1], device=ids.device).expand_as(ids)
        x = self.dropout(self.tokens(rows.pack(ids)) + self.positions(rows.pack(position)))
        layers = [rows] * len(self.blocks) if state is None else state.of_rows(len(ids))
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, layer)
        return rows.unpack(self.norm(x))

    def flops(self, batch: Batch) -> float:
        """See `LanguageModel`; rows count as full."""
        tokens, length = batch["input_ids"].numel(), batch["input_ids"].shape[1]
        body = sum(block.flops(tokens, tokens * length) for block in self.blocks)
        return body + 2.0 * tokens * self.hidden_size * self.vocab_size

    def loss_terms(self, outputs: Batch, batch: Batch) -> dict[str, LossTerm]:
        """`next_token_loss`: the mean negative log-likelihood of `targets` (B, T)."""
        return {"next_token_loss": nll_term(outputs["logits"], batch["targets"])}

    def correct(self, outputs: Batch, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """`next_token_accuracy`."""
        counted = batch["targets"] != IGNORE
        hits = (outputs["logits"].argmax(-1) == batch["targets"]) & counted
        return {"next_token_accuracy": (hits.sum(-1), counted.sum(-1))}
