"""ELMo with its tokeniser: sentences go in, vectors and likelihoods come out."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from errors import UserError
from models.language.elmo import ELMo, boundary_characters
from models.language.generation import evaluating
from models.language.predictors import Embedding, PredictOptions, Score


class WordTokenizer(Protocol):
    """What is needed of a tokeniser of words; `cls` stands for `<S>`, `eos` for `</S>`."""

    cls: int | None
    eos: int | None

    def split(self, text: str) -> list[str]:
        """The words of a text."""

    def encode(self, text: str) -> np.ndarray:
        """Their ids."""

    def characters(self, words: Sequence[str]) -> np.ndarray:
        """Their characters (N, 50)."""


class ElmoPredictor:
    """ELMo: vectors of words in their sentence, and how likely sentences are.

    Each text is read by itself, as one sentence, so that it always gets the same vectors; for those of the published
    code, which keeps its state from batch to batch, see `ELMo.read`.

    Args:
        network: with or without softmax; scores need one.
        tokenizer: that it was trained with.
    """

    def __init__(self, network: ELMo, tokenizer: WordTokenizer) -> None:
        if not hasattr(tokenizer, "characters"):
            raise UserError("ELMo needs a tokeniser of words, which spells them: take words or ELMo's checkpoint")
        self.network = network
        self.tokenizer = tokenizer

    def embed(self, texts: str | Sequence[str]) -> Embedding | list[Embedding]:
        """The words, and the last layer's vectors, forward and backward side by side."""
        if isinstance(texts, str):
            return self.embed([texts])[0]
        layers = self.layers(texts)
        return [Embedding(self._words(text), found[-1]) for text, found in zip(texts, layers, strict=True)]

    @torch.no_grad()
    def layers(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text all layers' vectors (L, words, hidden) float32, for a mixture of your own."""
        spelled = [self._spelled(self._words(text)) for text in texts]
        with evaluating(self.network):
            found = self.network.layers({"character_ids": pad_sequence(spelled, batch_first=True)})
        return [found[:, i, : len(characters)].float().cpu().numpy() for i, characters in enumerate(spelled)]

    @torch.no_grad()
    def score(self, texts: str | Sequence[str]) -> Score | list[Score]:
        """How likely texts are: the mean of both directions' log-likelihoods, the sentence's end included."""
        if isinstance(texts, str):
            return self.score([texts])[0]
        with evaluating(self.network):
            return [self._score(text) for text in texts]

    def predict(self, texts: Sequence[str], options: PredictOptions) -> list[dict[str, Any]]:
        """Per text what `options` ask for, in plain types but for the vectors."""
        results: list[dict[str, Any]] = [{"text": text} for text in texts]
        if options.scores:
            for result, one in zip(results, self.score(texts), strict=True):
                result |= {
                    "log_likelihood": one.log_likelihood,
                    "tokens": one.tokens,
                    "perplexity": one.perplexity,
                    "bits_per_character": one.bits_per_character,
                }
        if options.embeddings:
            for result, one in zip(results, self.embed(texts), strict=True):
                result["embedding"] = one
        return results

    def _score(self, text: str) -> Score:
        words = self._words(text)
        signs = boundary_characters(self._device)
        ahead = torch.arange(2, len(words) + 2, device=self._device)
        ids = torch.as_tensor(self.tokenizer.encode(text), device=self._device)
        ends = [torch.tensor([i], device=self._device) for i in (0, 1, self.tokenizer.cls, self.tokenizer.eos)]
        batch = {
            "characters": torch.cat([signs, self._spelled(words)]),
            "words": torch.cat([ends[0], ahead])[None],
            "backward_words": torch.cat([ends[1], ahead.flip(0)])[None],
            "targets": torch.cat([ids, ends[3]])[None],
            "backward_targets": torch.cat([ids.flip(0), ends[2]])[None],
            "fresh": torch.tensor([True], device=self._device),
        }
        terms = self.network.loss_terms(self.network(batch)[0], batch).values()
        return Score(-math.fsum(term.numerator.item() for term in terms) / 2, len(words) + 1, len(text))

    def _words(self, text: str) -> list[str]:
        words = self.tokenizer.split(text)
        if not words:
            raise UserError(f"the text {text!r} has no word: write a sentence")
        return words

    def _spelled(self, words: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.tokenizer.characters(words)).to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
