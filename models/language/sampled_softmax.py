"""A softmax over many words, trained with a few wrong ones drawn at random (Jean et al. 2015)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.language.language_model import IGNORE, token_nll
from models.loss_term import LossTerm

ELEMENTS = 1 << 26  # of logits that are held at a time in evaluation: 256 MiB of float32


class SharedSoftmax(nn.Module):
    """Words' probabilities from vectors; in training over the right word and a sample of wrong ones.

    The sample is drawn from the log-uniform distribution over word ids, so ids must go by frequency, the most
    frequent first. As in TensorFlow's `sampled_softmax_loss`: a sample is without repetition and shared by the whole
    batch, logits are corrected by the log of how often a word is expected in a sample, and a word that happens to be
    right is left out of the wrong ones.

    Args:
        vocab_size: number of words.
        width: of the vectors.
        samples: wrong words in a sample; None, or no fewer than there are words, takes the whole vocabulary.
    """

    def __init__(self, vocab_size: int, width: int, *, samples: int | None = 8192) -> None:
        super().__init__()
        self.samples = samples
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill with fresh random weights."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)

    @property
    def is_sampled(self) -> bool:
        """Whether training takes a sample."""
        return self.samples is not None and self.samples < len(self.weight)

    def forward(self, x: Tensor, targets: Tensor, *, weight: float = 1.0) -> LossTerm:
        """The loss of vectors (B, T, width) with the words (B, T) that follow, `IGNORE` where none counts."""
        counted = targets != IGNORE
        flat, wanted = x[counted], targets[counted]
        nll = self._sampled(flat, wanted) if self.training and self.is_sampled else self._full(flat, wanted)
        rows = nll.new_zeros(targets.shape).masked_scatter(counted, nll).sum(1)
        return LossTerm(rows, counted.sum(1).float(), weight, 0.0)

    def _full(self, x: Tensor, targets: Tensor) -> Tensor:
        """(N, width), (N,) -> (N,) float32; a part at a time where no gradient needs all logits."""
        parts = max(ELEMENTS // len(self.weight), 1) if not torch.is_grad_enabled() else max(len(x), 1)
        pairs = zip(x.split(parts), targets.split(parts), strict=True)
        return torch.cat([token_nll(F.linear(some, self.weight, self.bias), wanted) for some, wanted in pairs])

    def _sampled(self, x: Tensor, targets: Tensor) -> Tensor:
        drawn, tries = log_uniform_sample(self.samples, len(self.weight), x.device)
        rows = torch.cat([targets, drawn])
        weights, biases = F.embedding(rows, self.weight), self.bias[rows]
        correction = expected_count(rows, tries, len(self.weight)).log()
        right = (x * weights[: len(x)]).sum(-1).float() + (biases - correction)[: len(x)]
        wrong = F.linear(x, weights[len(x) :]).float() + (biases - correction)[len(x) :]
        wrong = wrong.masked_fill(drawn == targets[:, None], -torch.inf)
        logits = torch.cat([right[:, None], wrong], 1)
        return token_nll(logits, torch.zeros_like(targets))


def log_uniform_sample(number: int, vocab_size: int, device: torch.device | None = None) -> tuple[Tensor, int]:
    """Different words, drawn one by one until there are enough: P(k) = ln((k + 2) / (k + 1)) / ln(vocab_size + 1).

    Draws come from the CPU's random stream, which every checkpoint keeps.

    Args:
        number: of words wanted, fewer than `vocab_size`.
        vocab_size: number of words.
        device: for the result.

    Returns:
        The words (number,) int64 in the order in which they came, and the draws that it took.
    """
    drawn = torch.empty(0, dtype=torch.int64)
    while True:
        more = torch.rand(2 * number, dtype=torch.float64).mul_(torch.tensor(vocab_size + 1.0).double().log()).exp_()
        drawn = torch.cat([drawn, (more.long() - 1).clamp_(0, vocab_size - 1)])
        words, place = drawn.unique(return_inverse=True)
        if len(words) >= number:
            first = torch.full((len(words),), len(drawn)).scatter_reduce(0, place, torch.arange(len(drawn)), "amin")
            order = first.sort().values[:number]
            return drawn[order].to(device), int(order[-1]) + 1


def expected_count(words: Tensor, tries: int, vocab_size: int) -> Tensor:
    """How often words (N,) are expected in a sample without repetition that took `tries` draws: (N,) float32."""
    k = words.double()
    probability = ((k + 2) / (k + 1)).log() / torch.tensor(vocab_size + 1.0).double().log()
    return -torch.expm1(tries * torch.log1p(-probability)).float()
