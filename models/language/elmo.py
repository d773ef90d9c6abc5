"""ELMo: word vectors from a language model of both directions (Peters et al. 2018)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError
from models.language.elmo_characters import FILTERS, CharacterCNN
from models.language.elmo_lstm import ProjectedLSTM
from models.language.language_model import Batch, LanguageModel
from models.language.sampled_softmax import SharedSoftmax
from models.loss_term import LossTerm

SLOTS, BEGIN_WORD, END_WORD, FILLING = 50, 259, 260, 261
# What stands at the ends of a sentence, as characters: <S> and </S>.
BOUNDARIES = tuple((BEGIN_WORD, middle, END_WORD) for middle in (257, 258))
DIRECTIONS = ("forward", "backward")


class ELMoSize(NamedTuple):
    """A published size; the parameters are those without the softmax, which was never published."""

    cells: int
    projection: int
    highways: int
    parameters: int


# Of the authors' files elmo_2x<cells>_<projection>_2048cnn_<highways>xhighway.
ELMO_SIZES = {
    "small": ELMoSize(1024, 128, 1, 13_593_296),
    "medium": ELMoSize(2048, 256, 1, 28_027_728),
    "original": ELMoSize(4096, 512, 2, 93_600_848),
}

State = list[tuple[Tensor, Tensor]]  # per layer the outputs (2, B, P) and cells (2, B, H)


class ELMo(LanguageModel):
    """Two stacks of LSTMs, one reading forward, one backward, on word vectors made of characters.

    Both directions share the word vectors and the softmax. A layer's input is added to its output, but for the first
    layer's. The state goes on from batch to batch, in training as in use.

    Two kinds of batches are read:

    - text to learn from, `forward`: `characters` (U, 50), those of the different words of the batch, `words` (B, T) and
      `backward_words` (B, T), which of them stands where in the two streams, `targets` and `backward_targets` (B, T);
    - sentences to encode, `read`, `layers` and `encode`: `character_ids` (B, T, 50), 0 where padding is, on the right.

    Args:
        vocab_size: words that are predicted, the most frequent first; None makes no softmax: vectors only.
        size: `small`, `medium` or `original`: what the next three are where they are None.
        cells: LSTM cells H of a layer and direction.
        projection: width P of words and of what a layer and direction puts out.
        highways: number of highway layers behind the convolutions.
        character_size: width of a character's vector.
        filters: (width, number) of the convolutions over characters.
        layers: number of LSTM layers.
        cell_clip: cells stay within +-this.
        projection_clip: outputs stay within +-this.
        residual: whether to add inputs to outputs.
        dropout: of what each LSTM layer reads, and of the last one's output.
        samples: wrong words that the softmax is trained with; None, or no fewer than there are words, takes all.
            Evaluation always takes all.
    """

    perplexities = {"forward_loss": "forward_perplexity", "backward_loss": "backward_perplexity"}

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        size: str = "original",
        cells: int | None = None,
        projection: int | None = None,
        highways: int | None = None,
        character_size: int = 16,
        filters: Sequence[tuple[int, int]] = FILTERS,
        layers: int = 2,
        cell_clip: float = 3.0,
        projection_clip: float = 3.0,
        residual: bool = True,
        dropout: float = 0.1,
        samples: int | None = 8192,
    ) -> None:
        super().__init__()
        if size not in ELMO_SIZES:
            raise UserError(f"there is no ELMo of size {size!r}: choose one of {', '.join(ELMO_SIZES)}")
        self.size = ELMO_SIZES[size]
        cells, projection = cells or self.size.cells, projection or self.size.projection
        highways = self.size.highways if highways is None else highways
        self.vocab_size = vocab_size
        self.hidden_size = 2 * projection
        self.projection = projection
        self.cells = cells
        self.residual = residual
        self.words = CharacterCNN(
            character_size=character_size, filters=filters, highways=highways, output_size=projection
        )
        self.lstms = nn.ModuleList(
            ProjectedLSTM(
                directions=2,
                input_size=projection,
                cells=cells,
                projection=projection,
                cell_clip=cell_clip,
                projection_clip=projection_clip,
            )
            for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.softmax = None if vocab_size is None else SharedSoftmax(vocab_size, projection, samples=samples)

    @property
    def published(self) -> dict[str, int | float]:
        """What was reported of this size, for `tools.model_table`; nothing of sizes that nobody published."""
        sizes = (self.cells, self.projection, len(self.words.highways))
        whole = tuple((c.kernel_size[0], c.out_channels) for c in self.words.convolutions) == FILTERS
        if sizes != self.size[:3] or not whole or len(self.lstms) != 2 or self.softmax is not None:
            return {}
        result: dict[str, int | float] = {"parameters": self.size.parameters}
        if self.size is ELMO_SIZES["original"]:
            result["1B Word perplexity, mean of both directions"] = 39.7  # Peters et al. 2018, section 3.4
        return result

    @property
    def num_layers(self) -> int:
        """What `layers` gives: the words and each LSTM layer."""
        return 1 + len(self.lstms)

    def initial_state(self, rows: int = 1) -> State:
        """Zeros: nothing was read."""
        like = self.words.characters
        return [
            (like.new_zeros(2, rows, self.projection), like.new_zeros(2, rows, self.cells))
            for _ in range(len(self.lstms))
        ]

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Batch, State]:
        """What both directions know of the words that come next: `forward` and `backward`, (B, T, P) each.

        Args:
            batch: text to learn from.
            state: where the rows go on that are not `fresh`; None: nowhere.
        """
        places = torch.stack([batch["words"], batch["backward_words"]]).transpose(1, 2)
        words = F.embedding(places, self.words(batch["characters"]))  # (2, T, B, P)
        state = self._begin(state, batch["fresh"])
        layers, cells = self._run(words, state)
        top = self.dropout(layers[-1]).transpose(1, 2)
        new_state = [(outputs[:, -1], all_cells[:, -1]) for outputs, all_cells in cells]
        return dict(zip(DIRECTIONS, top, strict=True)), new_state

    def loss_terms(self, outputs: Batch, batch: Batch) -> dict[str, LossTerm]:
        """Half of each direction's mean negative log-likelihood: `forward_loss` and `backward_loss`.

        In training with sampled words they are called `forward_sampled_loss` and `backward_sampled_loss`: those are
        far smaller, and no likelihoods.
        """
        if self.softmax is None:
            raise UserError("this ELMo predicts no words: give model.network.vocab_size to train or evaluate it")
        targets = {"forward": batch["targets"], "backward": batch["backward_targets"]}
        kind = "sampled_loss" if self.training and self.softmax.is_sampled else "loss"
        return {f"{name}_{kind}": self.softmax(outputs[name], targets[name], weight=0.5) for name in DIRECTIONS}

    def head_parameters(self) -> list[nn.Parameter]:
        """The softmax."""
        return [] if self.softmax is None else list(self.softmax.parameters())

    def encode(self, batch: Batch) -> Tensor:
        """The last layer's vectors (B, T, 2 P), forward and backward, of sentences by themselves."""
        return self.layers(batch)[-1]

    def layers(self, batch: Batch) -> Tensor:
        """All layers' vectors (L, B, T, 2 P) of sentences by themselves, the words' twice over being the first."""
        return self.read(batch)[0]

    def read(self, batch: Batch, state: State | None = None) -> tuple[Tensor, State]:
        """All layers' vectors of sentences, and the state behind them.

        Args:
            batch: `character_ids` (B, T, 50) int64 of sentences without `<S>` and `</S>`, which are put around them.
            state: what the batch before of as many sentences left, as the published models want it; None: the
                sentences stand by themselves, so that the same sentence always gets the same vectors.

        Returns:
            (L, B, T, 2 P), zero where padding is, and the new state.
        """
        characters = batch["character_ids"]
        mask = (characters > 0).any(-1)
        lengths = mask.sum(1) + 2
        characters = with_boundaries(characters, lengths)
        words = self.words(characters)  # (B, T + 2, P)
        turned = turn(lengths, characters.shape[1])  # its own inverse
        both = torch.stack([words, turned_over(words, turned)]).transpose(1, 2)
        layers, cells = self._run(both, self._begin(state, torch.full_like(lengths, state is None, dtype=torch.bool)))
        kept = mask[..., None].to(words.dtype)
        vectors = []
        for layer in layers:
            ahead, back = layer.transpose(1, 2)
            vectors.append(torch.cat([ahead, turned_over(back, turned)], -1)[:, 1:-1] * kept)
        last = (lengths - 1)[None, None, :, None]
        new_state = [
            tuple(part.gather(1, last.expand(2, 1, -1, part.shape[-1]))[:, 0] for part in layer) for layer in cells
        ]
        return torch.stack(vectors), new_state

    def _begin(self, state: State | None, fresh: Tensor) -> State:
        if state is None:
            return self.initial_state(len(fresh))
        goes_on = (~fresh)[:, None]
        return [tuple(part * goes_on.to(part.dtype) for part in layer) for layer in state]

    def _run(self, words: Tensor, state: State) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """The layers' outputs (2, T, B, P), words first; and per LSTM the outputs and cells of all steps."""
        layers, cells = [words], []
        x = words
        for i, (lstm, (output, cell)) in enumerate(zip(self.lstms, state, strict=True)):
            x = self.dropout(x)
            outputs, all_cells = lstm(x, output, cell)
            cells.append((outputs, all_cells))
            x = x + outputs if self.residual and i > 0 else outputs
            layers.append(x)
        return layers, cells


def with_boundaries(characters: Tensor, lengths: Tensor) -> Tensor:
    """Sentences (B, T, 50), padded on the right, with `<S>` before and `</S>` behind: (B, T + 2, 50).

    Args:
        characters: the sentences.
        lengths: (B,), of the sentences with both boundaries.
    """
    result = F.pad(characters, (0, 0, 1, 1))
    begin, end = boundary_characters(characters.device)
    result[:, 0] = begin
    result[torch.arange(len(result), device=characters.device), lengths - 1] = end
    return result


def boundary_characters(device: torch.device) -> Tensor:
    """`<S>` and `</S>` as words (2, 50)."""
    signs = torch.full((2, SLOTS), FILLING, device=device)
    signs[:, :3] = torch.tensor(BOUNDARIES, device=device)
    return signs


def turn(lengths: Tensor, width: int) -> Tensor:
    """Where each place (B, width) lies when the first `lengths` of each row are read from behind."""
    places = torch.arange(width, device=lengths.device).expand(len(lengths), -1)
    return torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)


def turned_over(x: Tensor, places: Tensor) -> Tensor:
    """(B, T, D), its T taken at `places` (B, T)."""
    return x.gather(1, places[..., None].expand_as(x))
