"""A language model with its tokeniser: texts go in, texts and numbers come out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from errors import UserError
from models.language.bert import BERT
from models.language.elmo import ELMo
from models.language.generation import fill_mask, generate, score, score_masked, windows
from models.language.language_model import LanguageModel

MASK = "[MASK]"  # how a hidden word is written in texts, whatever the tokeniser calls it


class TextTokenizer(Protocol):
    """What is needed of a tokeniser; roles that it does not have are None."""

    tokens: list[str]
    cls: int | None
    sep: int | None
    mask: int | None
    eos: int | None

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""


@dataclass
class PredictOptions:
    """What `train.py predict` makes of each text.

    Args:
        max_new_tokens: causal models: length of the continuation; 0 scores only.
        temperature: causal models: divides the logits; 0 takes the likeliest token always.
        top_k: causal models: draw from the k likeliest tokens only.
        top_p: causal models: draw from the fewest tokens whose probabilities sum to this only.
        candidates: masked models: words to name for each masked place.
        scores: give the texts' log-likelihoods, too.
        embeddings: give the vectors of all tokens, too.
        seed: of the draws.
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    candidates: int = 5
    scores: bool = True
    embeddings: bool = False
    seed: int = 0


class Score(NamedTuple):
    """How likely a text is.

    Attributes:
        log_likelihood: in nats, the sum over the tokens that were predicted.
        tokens: their number.
        characters: of the text.
    """

    log_likelihood: float
    tokens: int
    characters: int

    @property
    def perplexity(self) -> float:
        """Per token: depends on the tokeniser."""
        return math.exp(min(-self.log_likelihood / max(self.tokens, 1), 700.0))

    @property
    def bits_per_character(self) -> float:
        """Comparable across tokenisers."""
        return -self.log_likelihood / math.log(2) / max(self.characters, 1)


class Embedding(NamedTuple):
    """The vectors of a text in its context.

    Attributes:
        tokens: as the tokeniser writes them.
        vectors: (tokens, hidden) float32; their mean is a simple vector of the text.
    """

    tokens: list[str]
    vectors: np.ndarray


class CausalPredictor:
    """A model that predicts the next token, GPT or LSTM: continues texts, scores and embeds them.

    Texts begin with the token that ends a document (or a line, of words) if the tokeniser has one, since what comes
    after it is a beginning.

    Args:
        network: causal; its outputs have `logits`.
        tokenizer: that it was trained with.
    """

    def __init__(self, network: LanguageModel, tokenizer: TextTokenizer) -> None:
        self.network = network
        self.tokenizer = tokenizer

    def generate(
        self,
        prompts: str | Sequence[str] = "",
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        seed: int | None = None,
        use_cache: bool = True,
    ) -> str | list[str]:
        """Continue texts; see `models.language.generation.generate` for the options.

        Args:
            prompts: one or several texts.
            max_new_tokens: the most tokens to append; a document's end stops earlier.
            temperature: 0 takes the likeliest token always.
            top_k: draw from the k likeliest tokens only.
            top_p: draw only from the fewest tokens whose probabilities sum to this.
            seed: makes the draws repeatable.
            use_cache: keep keys and values, or the recurrent state, from token to token.

        Returns:
            The texts with their continuations, as they came: one or a list.
        """
        if isinstance(prompts, str):
            prompts, single = [prompts], True
        else:
            single = False
        generator = None
        if seed is not None:
            generator = torch.Generator(self._device).manual_seed(seed)
        rows = generate(
            self.network,
            [self._encode(prompt, what="prompt") for prompt in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_token=self._stop,
            generator=generator,
            use_cache=use_cache,
        )
        texts = [self._decode(row.tolist()) for row in rows]
        return texts[0] if single else texts

    def score(self, texts: str | Sequence[str]) -> Score | list[Score]:
        """How likely texts are; without a token to begin with, the first token is given and not counted."""
        if isinstance(texts, str):
            return self.score([texts])[0]
        rows = [self._encode(text, what="text to score") for text in texts]
        return [
            Score(value, len(row) - 1, len(text))
            for value, row, text in zip(score(self.network, rows).tolist(), rows, texts, strict=True)
        ]

    @torch.no_grad()
    def embed(self, texts: str | Sequence[str]) -> Embedding | list[Embedding]:
        """The vectors of the texts' tokens; each has seen the tokens to its left, at least half a context of them."""
        if isinstance(texts, str):
            return self.embed([texts])[0]
        first = int(self._start is not None)
        results = []
        for text in texts:
            row = self._encode(text, what="text to embed")
            found = [
                _embedded(self.network, self.tokenizer, [row[start:stop]], slice(-new, None))[0]
                for start, stop, new in windows(len(row), self.network.context_length)
            ]
            tokens = [token for piece in found for token in piece.tokens]
            results.append(Embedding(tokens[first:], np.concatenate([piece.vectors for piece in found])[first:]))
        return results

    def predict(self, texts: Sequence[str], options: PredictOptions) -> list[dict[str, Any]]:
        """Per text what `options` ask for, in plain types but for the vectors."""
        results: list[dict[str, Any]] = [{"text": text} for text in texts]
        if options.max_new_tokens:
            made = self.generate(
                texts,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seed=options.seed,
            )
            for result, text in zip(results, made, strict=True):
                result["generated"] = text
        _add_scores_and_vectors(self, texts, results, options)
        return results

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def _start(self) -> int | None:
        return self.tokenizer.eos

    @property
    def _stop(self) -> int | None:
        """The end of a document; that of a line, which `eos` is of words, ends nothing."""
        return None if getattr(self.tokenizer, "kind", "") == "words" else self.tokenizer.eos

    def _encode(self, text: str, what: str) -> Tensor:
        start = [] if self._start is None else [self._start]
        ids = [*start, *self.tokenizer.encode(text).tolist()]
        if not ids:
            raise UserError(f"a {what} is empty, and the tokeniser has no token to begin with: write something")
        return torch.tensor(ids, device=self._device)

    def _decode(self, ids: list[int]) -> str:
        begin = int(self._start is not None)
        end = len(ids) - int(len(ids) > begin and ids[-1] == self._stop)
        return self.tokenizer.decode(ids[begin:end])


class MaskedPredictor:
    """BERT: fills in masked words, scores and embeds texts.

    Args:
        network: with a head for masked words.
        tokenizer: that it was trained with; needs `cls`, `sep` and `mask`.
    """

    def __init__(self, network: BERT, tokenizer: TextTokenizer) -> None:
        self.network = network
        self.tokenizer = tokenizer

    def fill(self, texts: str | Sequence[str], candidates: int = 5) -> list:
        """The likeliest words for every `[MASK]` of a text.

        Args:
            texts: one or several; each has at least one `[MASK]`.
            candidates: words to name for each place.

        Returns:
            For one text a list with an entry for each place, which is a list of (word, probability), the likeliest
            first; for several texts a list of those.

        Raises:
            UserError: a text has no `[MASK]`, or too many tokens.
        """
        if isinstance(texts, str):
            return self.fill([texts], candidates)[0]
        for text in texts:
            if MASK not in text and self._own_mask not in text:
                raise UserError(f"the text {text!r} has no {MASK}: write it in place of the word to fill in")
        rows = [self._encode(text) for text in texts]
        ids = pad_sequence(rows, batch_first=True)
        inside = pad_sequence([torch.ones_like(row).bool() for row in rows], batch_first=True)
        found = fill_mask(
            self.network,
            torch.where(inside, ids, self.tokenizer.sep),
            mask_token=self.tokenizer.mask,
            top_k=candidates,
            attention_mask=inside,
        )
        results: list = [[] for _ in texts]
        for row, tokens, shares in zip(
            found.row.tolist(), found.tokens.tolist(), found.probabilities.tolist(), strict=True
        ):
            words = [self.tokenizer.decode([token]).strip() for token in tokens]
            results[row].append(list(zip(words, shares, strict=True)))
        return results

    def score(self, texts: str | Sequence[str]) -> Score | list[Score]:
        """Pseudo-log-likelihoods, each token predicted from all others; to compare texts under one model only."""
        if isinstance(texts, str):
            return self.score([texts])[0]
        scores = []
        for text in texts:
            ids = self._encode(text)
            counted = torch.ones_like(ids).bool()
            counted[0] = counted[-1] = False
            value, tokens = score_masked(self.network, ids, mask_token=self.tokenizer.mask, counted=counted)
            scores.append(Score(value, tokens, len(text)))
        return scores

    @torch.no_grad()
    def embed(self, texts: str | Sequence[str]) -> Embedding | list[Embedding]:
        """The vectors of the texts' tokens, `[CLS]` and `[SEP]` left out; each has seen all others."""
        if isinstance(texts, str):
            return self.embed([texts])[0]
        rows = [self._encode(text) for text in texts]
        return _embedded(self.network, self.tokenizer, rows, slice(1, -1))

    def predict(self, texts: Sequence[str], options: PredictOptions) -> list[dict[str, Any]]:
        """Per text what `options` ask for, in plain types but for the vectors."""
        results: list[dict[str, Any]] = [{"text": text} for text in texts]
        masked = [i for i, text in enumerate(texts) if MASK in text or self._own_mask in text]
        filled = self.fill([texts[i] for i in masked], options.candidates) if masked else []
        for i, places in zip(masked, filled, strict=True):
            results[i]["filled"] = self.put_in(texts[i], [place[0][0] for place in places])
            results[i]["candidates"] = [[[word, share] for word, share in place] for place in places]
        _add_scores_and_vectors(self, texts, results, options)
        return results

    def put_in(self, text: str, words: Sequence[str]) -> str:
        """A text with words in its masked places; pieces that go on with a word are joined to it."""
        parts = text.replace(self._own_mask, MASK).split(MASK)
        result = parts[0]
        for word, part in zip(words, parts[1:], strict=True):
            goes_on = word.startswith("##")
            result = (result.rstrip(" ") + word[2:] if goes_on else result + word) + part
        return result

    @property
    def _own_mask(self) -> str:
        return self.tokenizer.tokens[self.tokenizer.mask]

    def _encode(self, text: str) -> Tensor:
        parts = [self.tokenizer.encode(part).tolist() for part in text.replace(self._own_mask, MASK).split(MASK)]
        ids = [self.tokenizer.cls, *parts[0]]
        for part in parts[1:]:
            ids += [self.tokenizer.mask, *part]
        return torch.tensor([*ids, self.tokenizer.sep], device=next(self.network.parameters()).device)


class Predictor(Protocol):
    """What all of them can do: see `CausalPredictor`, `MaskedPredictor` and `ElmoPredictor`."""

    def score(self, texts: str | Sequence[str]) -> Score | list[Score]:
        """How likely texts are."""

    def embed(self, texts: str | Sequence[str]) -> Embedding | list[Embedding]:
        """The vectors of the texts' tokens."""

    def predict(self, texts: Sequence[str], options: PredictOptions) -> list[dict[str, Any]]:
        """Per text what `options` ask for."""


def predictor_for(network: LanguageModel, tokenizer: TextTokenizer) -> Predictor:
    """What suits the kind of model."""
    if isinstance(network, ELMo):
        from models.language.elmo_predictor import ElmoPredictor  # which builds on this file

        return ElmoPredictor(network, tokenizer)
    return MaskedPredictor(network, tokenizer) if isinstance(network, BERT) else CausalPredictor(network, tokenizer)


def _add_scores_and_vectors(
    predictor: Predictor, texts: Sequence[str], results: list[dict[str, Any]], options: PredictOptions
) -> None:
    if options.scores:
        for result, one in zip(results, predictor.score(texts), strict=True):
            result |= {
                "log_likelihood": one.log_likelihood,
                "tokens": one.tokens,
                "perplexity": one.perplexity,
                "bits_per_character": one.bits_per_character,
            }
    if options.embeddings:
        for result, one in zip(results, predictor.embed(texts), strict=True):
            result["embedding"] = one


def _embedded(network: LanguageModel, tokenizer: TextTokenizer, rows: list[Tensor], kept: slice) -> list[Embedding]:
    """The vectors of rows of ids, of the tokens kept."""
    training = network.training
    ids = pad_sequence(rows, batch_first=True)
    inside = pad_sequence([torch.ones_like(row).bool() for row in rows], batch_first=True)
    fresh = torch.ones(len(rows), dtype=torch.bool, device=ids.device)
    try:
        vectors = network.eval().encode({"input_ids": ids, "attention_mask": inside, "fresh": fresh})
    finally:
        network.train(training)
    results = []
    for row, found in zip(rows, vectors.float().cpu().numpy(), strict=True):
        names = [tokenizer.tokens[i] for i in row.tolist()]
        results.append(Embedding(names[kept], found[: len(row)][kept]))
    return results
