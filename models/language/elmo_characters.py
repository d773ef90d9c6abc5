"""ELMo's view of a word: a convolution over its characters, highways and a projection."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHARACTERS = 261  # 256 bytes, begin and end of sentence, begin and end of word, filling; 0 stands for no word at all
FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))  # (width, number)


class CharacterCNN(nn.Module):
    """From the characters of words to vectors (Peters et al. 2018, section 3.4; Kim et al. 2016).

    Args:
        character_size: width of a character's vector.
        filters: (width, number) of the convolutions.
        highways: number of highway layers.
        output_size: width P of a word's vector.
    """

    def __init__(
        self,
        *,
        character_size: int = 16,
        filters: Sequence[tuple[int, int]] = FILTERS,
        highways: int = 2,
        output_size: int = 512,
    ) -> None:
        super().__init__()
        width = sum(number for _, number in filters)
        self.characters = nn.Parameter(torch.empty(CHARACTERS, character_size))
        self.convolutions = nn.ModuleList(nn.Conv1d(character_size, number, size) for size, number in filters)
        self.highways = nn.ModuleList(Highway(width) for _ in range(highways))
        self.projection = nn.Linear(width, output_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill with fresh random weights, as the authors' code does."""
        nn.init.uniform_(self.characters, -1.0, 1.0)
        for convolution in self.convolutions:
            nn.init.uniform_(convolution.weight, -0.05, 0.05)
            nn.init.zeros_(convolution.bias)
        for highway in self.highways:
            highway.reset_parameters()
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)
        nn.init.zeros_(self.projection.bias)

    def forward(self, characters: Tensor) -> Tensor:
        """Vectors of words.

        Args:
            characters: (..., 50) int64, 0..261; see `datamodules.text.elmo_characters`.

        Returns:
            (..., P).
        """
        table = F.pad(self.characters, (0, 0, 1, 0))  # 0 is no word: its characters are zeros
        x = F.embedding(characters.flatten(0, -2), table).transpose(1, 2)  # (N, character_size, 50)
        # Taking the maximum first and then what is positive of it is the same as the other way round, and cheaper.
        x = torch.cat([convolution(x).amax(-1) for convolution in self.convolutions], 1).relu()
        for highway in self.highways:
            x = highway(x)
        return self.projection(x).view(*characters.shape[:-1], -1)


class Highway(nn.Module):
    """g * relu(transform(x)) + (1 - g) * x, where g = sigmoid(gate(x)) begins near 0.12 (Srivastava et al. 2015).

    Args:
        width: of x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill with fresh random weights; the gates begin nearly closed, so that x passes through."""
        for linear, bias in ((self.transform, 0.0), (self.gate, -2.0)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.constant_(linear.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to (N, width)."""
        return torch.lerp(x, self.transform(x).relu(), self.gate(x).sigmoid())
