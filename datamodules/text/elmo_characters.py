"""Words as ELMo reads them: rows of 50 character ids made of their bytes in UTF-8."""

from collections.abc import Sequence

import numpy as np

SLOTS = 50
# One more than in the authors' training code, so that 0 is left for padding between words; bytes are 1 to 256.
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, FILLING = 257, 258, 259, 260, 261
BOUNDARIES = np.full((2, SLOTS), FILLING)  # <S> and </S>
BOUNDARIES[:, 0] = BEGIN_WORD
BOUNDARIES[:, 1] = BEGIN_SENTENCE, END_SENTENCE
BOUNDARIES[:, 2] = END_WORD


def word_characters(words: Sequence[str]) -> np.ndarray:
    """(N, 50) int64: begin of word, the word's first 48 bytes, end of word, filling."""
    result = np.full((len(words), SLOTS), FILLING, np.int64)
    result[:, 0] = BEGIN_WORD
    for row, word in zip(result, words, strict=True):
        codes = np.frombuffer(word.encode("utf-8", "surrogatepass")[: SLOTS - 2], np.uint8)
        row[1 : 1 + len(codes)] = codes.astype(np.int64) + 1
        row[1 + len(codes)] = END_WORD
    return result


def sentence_characters(sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """(B, T, 50) int64 of B sentences, each a sequence of words; 0 behind the end of the shorter ones."""
    result = np.zeros((len(sentences), max(map(len, sentences), default=0), SLOTS), np.int64)
    for row, sentence in zip(result, sentences, strict=True):
        row[: len(sentence)] = word_characters(sentence)
    return result
