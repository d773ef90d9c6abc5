"""What one does with a trained language model: continue texts, fill in masked words, score sequences."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from errors import UserError
from models.language.bert import BERT
from models.language.language_model import IGNORE, LanguageModel, token_nll


@torch.no_grad()
def generate(
    network: LanguageModel,
    prompts: Sequence[Tensor] | Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> list[Tensor]:
    """Continue texts token by token with a causal language model.

    Prompts of several lengths are read in step, without padding: until a row's prompt is used up, its own next token
    takes the place of a drawn one. What lies further back than the network's `context_length` is forgotten.

    Args:
        network: transformer or recurrent network whose outputs have `logits`; used in evaluation mode.
        prompts: (B, T) or B rows of their own lengths of at least one token, int64, on the network's device.
        max_new_tokens: the most tokens that are appended to a row.
        temperature: divides the logits; 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens only.
        top_p: draw only from the fewest tokens whose probabilities (behind `top_k`) sum to at least this.
        stop_token: ends a row, of which it becomes the last token.
        generator: for the draws, on the network's device.
        use_cache: keep the network's state from token to token; else all is computed anew for each, to the same end.

    Returns:
        The rows, prompts included.

    Raises:
        UserError: an option is out of its range, or a prompt is empty.
    """
    _check(max_new_tokens, temperature, top_k, top_p)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    if starts.min() == 0:
        raise UserError("a prompt of generate is empty: begin it with a token of the document's start at least")
    tokens = pad_sequence(list(prompts), batch_first=True)
    tokens = torch.cat([tokens, tokens.new_zeros(len(tokens), max_new_tokens)], 1)
    ends = starts + max_new_tokens
    position, last = int(starts.min()), int(ends.max())
    with evaluating(network):
        reader = _Reader(network, use_cache)
        while position < last:
            drawn = _draw(reader.next_logits(tokens[:, :position]), temperature, top_k, top_p, generator)
            tokens[:, position] = torch.where(position < starts, tokens[:, position], drawn)
            position += 1
            if stop_token is not None:
                stopped = (tokens[:, position - 1] == stop_token) & (position > starts)
                ends = torch.where(stopped & (position < ends), position, ends)
                last = int(ends.max())  # which makes a GPU wait: only where it can change
    return [row[:end] for row, end in zip(tokens, ends.tolist(), strict=True)]


class Filling(NamedTuple):
    """What a masked language model would put in M masked places.

    Attributes:
        row: (M,) int64, of the places in the batch.
        position: (M,) int64, of the places in their rows.
        tokens: (M, k) int64, the likeliest first.
        probabilities: (M, k) float32.
    """

    row: Tensor
    position: Tensor
    tokens: Tensor
    probabilities: Tensor


@torch.no_grad()
def fill_mask(
    network: BERT,
    input_ids: Tensor,
    *,
    mask_token: int,
    top_k: int = 5,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
) -> Filling:
    """The likeliest tokens for every masked place.

    Args:
        network: used in evaluation mode.
        input_ids: (B, T) int64, on the network's device.
        mask_token: what stands at the masked places.
        top_k: tokens wanted for each place.
        attention_mask: (B, T) bool, false where padding is.
        token_type_ids: (B, T) int64, the segment of each token.

    Raises:
        UserError: nothing is masked.
    """
    masked = input_ids == mask_token
    counts = masked.sum(1)
    if not masked.any():
        raise UserError(f"no token of the text is the mask token {mask_token}: mask the word that is to be filled in")
    positions = masked.long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    wanted = torch.arange(positions.shape[1], device=positions.device) < counts[:, None]
    batch = {"input_ids": input_ids, "masked_positions": positions, "masked_labels": torch.where(wanted, 0, IGNORE)}
    optional = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
    batch |= {key: value for key, value in optional.items() if value is not None}
    with evaluating(network):
        probabilities = network.forward(batch)[0]["masked_logits"].float().softmax(-1)
    best = probabilities.topk(min(top_k, network.vocab_size))
    return Filling(wanted.nonzero()[:, 0], positions[wanted], best.indices, best.values)


@torch.no_grad()
def score(network: LanguageModel, sequences: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of sequences under a causal language model, given their first tokens.

    Of sequences longer than the network's `context_length`, windows are read that overlap by half, so that every token
    counts once and has at least half a context to its left.

    Args:
        network: transformer or recurrent network whose outputs have `logits`; used in evaluation mode.
        sequences: B rows of at least two tokens, int64, on the network's device.

    Returns:
        (B,) float64 on the CPU: the sum of ln p(token | tokens before it) over all tokens but the first.

    Raises:
        UserError: a sequence is too short.
    """
    if min(len(sequence) for sequence in sequences) < 2:
        raise UserError("a sequence to score has fewer than two tokens: leave it out or begin it with a start token")
    pieces = [
        (row, sequence[start : stop + 1], new)
        for row, sequence in enumerate(sequences)
        for start, stop, new in windows(len(sequence) - 1, network.context_length)
    ]
    totals = torch.zeros(len(sequences), dtype=torch.float64)
    with evaluating(network):
        for i in range(0, len(pieces), len(sequences)):
            rows, tokens, new = zip(*pieces[i : i + len(sequences)], strict=True)
            inputs = pad_sequence([row[:-1] for row in tokens], batch_first=True)
            targets = pad_sequence([row[1:] for row in tokens], batch_first=True, padding_value=IGNORE)
            lengths = torch.tensor([len(row) - 1 for row in tokens], device=inputs.device)
            position = torch.arange(inputs.shape[1], device=inputs.device)
            targets[position < (lengths - torch.tensor(new, device=inputs.device))[:, None]] = IGNORE
            inside = position < lengths[:, None]
            batch = {"input_ids": inputs, "attention_mask": inside, "fresh": torch.ones_like(lengths).bool()}
            nll = token_nll(network.forward(batch)[0]["logits"], targets)
            totals.index_add_(0, torch.tensor(rows), -nll.double().sum(1).cpu())
    return totals


def windows(count: int, context: int | None) -> Iterator[tuple[int, int, int]]:
    """Windows of at most `context` tokens over `count` tokens, overlapping by half: start, stop, and new tokens.

    The new tokens are a window's last; every token is new once.
    """
    context = context or count
    stop = min(context, count)
    yield 0, stop, stop
    while stop < count:
        new = min(max(context // 2, 1), count - stop)
        stop += new
        yield stop - context, stop, new


@torch.no_grad()
def score_masked(
    network: BERT, input_ids: Tensor, *, mask_token: int, counted: Tensor, rows_at_once: int = 32
) -> tuple[float, int]:
    """Pseudo-log-likelihood of a text under a masked language model (Salazar et al. 2020).

    Every token is masked in turn and predicted from all others. Not comparable to what causal models give.

    Args:
        network: used in evaluation mode.
        input_ids: (T,) int64 of one text, on the network's device.
        mask_token: what hides a token.
        counted: (T,) bool: the tokens to predict, not those around the text.
        rows_at_once: copies of the text per pass.

    Returns:
        The sum of ln p(token | all others) in float64, and the number of tokens.
    """
    places = counted.nonzero().squeeze(1)
    total = 0.0
    with evaluating(network):
        for some in places.split(rows_at_once):
            rows = input_ids.repeat(len(some), 1)
            rows[torch.arange(len(some)), some] = mask_token
            batch = {"input_ids": rows, "masked_positions": some[:, None]}
            nll = token_nll(network.forward(batch)[0]["masked_logits"], input_ids[some])
            total -= nll.double().sum().item()
    return total, len(places)


class _Reader:
    """Logits of the next token of texts that grow."""

    def __init__(self, network: LanguageModel, use_cache: bool) -> None:
        self.network = network
        self.limit = network.context_length or float("inf")
        self.use_cache = use_cache
        self.state = network.initial_state()
        self.seen = 0

    def next_logits(self, tokens: Tensor) -> Tensor:
        """(B, vocab_size) for the texts (B, T), of which all but the end was there at the last call."""
        length = tokens.shape[1]
        fresh = torch.full((len(tokens),), self.seen == 0, device=tokens.device)
        if self.use_cache and length <= self.limit:
            batch = {"input_ids": tokens[:, self.seen :], "fresh": fresh}
            # `forward`: a text that grows would make a compiled network compile anew and anew.
            outputs, self.state = self.network.forward(batch, self.state)
            self.seen = length
        else:  # positions have moved, so that nothing that was computed before holds any more
            start = max(0, length - self.limit)
            outputs, _ = self.network.forward({"input_ids": tokens[:, start:], "fresh": torch.ones_like(fresh)})
        return outputs["logits"][:, -1]


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """(B, vocab_size) -> (B,) tokens."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, index = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # of the tokens before, enough is there already
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def _check(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens {max_new_tokens} is negative: give 0 or more")
    if temperature < 0:
        raise UserError(f"temperature {temperature} is negative: give 0 for the likeliest token or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k {top_k} leaves no token to draw: give 1 or more, or nothing")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p} is no share: give a number above 0 and up to 1, or nothing")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
