"""Subword tokenisers of the `tokenizers` library: BPE over bytes, as GPT-2's, and WordPiece, as BERT's."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Unless this is said, the library warns at every fork of a worker process; workers here encode no batches.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from datamodules.text.tokenizers import Tokenizer
from errors import UserError

# How the roles are written: in what is trained here (first), and in published vocabularies.
WRITTEN = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "eos": ("<|endoftext|>", "[EOS]"),
}
# How white space is written: by BPE over bytes blank, line feed, carriage return and tab; by SentencePiece the blank.
WHITE = ("\u0120", "\u010a", "\u010d", "\u0109", "\u2581")
PREFIX = "##"  # of WordPiece's pieces that go on with a word
LONGEST_WORD = 200  # characters; longer ones are unknown, as in BERT's code


class Subwords(Tokenizer):
    """A tokeniser of the `tokenizers` library.

    Args:
        engine: the library's tokeniser; what it would put around texts is left out.
    """

    kind = "subwords"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        vocabulary = engine.get_vocab(with_added_tokens=True)
        tokens = [f"<unused {i}>" for i in range(max(vocabulary.values(), default=-1) + 1)]
        for token, i in vocabulary.items():
            tokens[i] = token
        roles = {role: next((w for w in ways if w in vocabulary), None) for role, ways in WRITTEN.items()}
        super().__init__(tokens, {role: vocabulary[written] for role, written in roles.items() if written is not None})

    @property
    def continues(self) -> np.ndarray | None:
        """(vocab_size,) bool: WordPiece's pieces with `##`; of BPE and Unigram those that begin with no white space."""
        model = type(self.engine.model).__name__
        special = np.isin(np.arange(self.vocab_size), list(self.specials.values()))
        if model == "WordPiece":
            return np.array([token.startswith(PREFIX) for token in self.tokens]) & ~special
        if model in ("BPE", "Unigram"):
            return np.array([token[:1] not in WHITE for token in self.tokens]) & ~special
        return None

    def encode(self, text: str) -> np.ndarray:
        """The ids of the pieces."""
        return np.array(self.engine.encode(text, add_special_tokens=False).ids, np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts, on all cores."""
        encoded = self.engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int64) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; WordPiece has lost some white space."""
        return self.engine.decode([int(i) for i in ids], skip_special_tokens=False)

    def state(self) -> dict[str, Any]:
        """The library's own form."""
        return {"kind": self.kind, "engine": json.loads(self.engine.to_str())}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Subwords":
        """See `Tokenizer.state`."""
        return cls(Engine.from_str(json.dumps(state["engine"])))


def train_bpe(texts: Iterable[str], *, vocabulary: int, min_count: int, specials: Sequence[str]) -> Subwords:
    """BPE over bytes with GPT-2's cut into words: no text is unknown, and decoding gives back what was encoded."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=min_count,
        special_tokens=[WRITTEN[role][0] for role in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return Subwords(engine)


def train_wordpiece(
    texts: Iterable[str], *, vocabulary: int, min_count: int, specials: Sequence[str], lowercase: bool
) -> Subwords:
    """WordPiece with BERT's normalisation and cut into words.

    The library numbers letters in the order of a hash that changes from run to run, and breaks ties by number. Given
    to it as special tokens they keep their numbers, so that the same texts make the same pieces.

    Args:
        texts: are read twice.
        vocabulary: at most half of it are letters, the most frequent ones.
        min_count: pieces that occur less often are not made.
        specials: roles of the special tokens.
        lowercase: lower, and strip accents.
    """
    engine = Engine(models.WordPiece(unk_token=WRITTEN["unk"][0], max_input_chars_per_word=LONGEST_WORD))
    _as_bert(engine, lowercase)
    forms = letters(engine, texts, vocabulary // 2)
    alphabet = [form for form in forms if len(form) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=min_count,
        special_tokens=[*(WRITTEN[role][0] for role in specials), *forms],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    vocabulary_by_id = sorted(engine.get_vocab().items(), key=lambda item: item[1])
    return wordpiece_from_vocabulary([piece for piece, _ in vocabulary_by_id], lowercase=lowercase)


def letters(engine: Engine, texts: Iterable[str], most: int) -> list[str]:
    """The letters of words, alone and, where they occur so, with the prefix of pieces that go on; sorted.

    Args:
        engine: normalises and cuts into words.
        texts: the texts.
        most: of letters of both forms together; the most frequent are kept.
    """
    counts: Counter[str] = Counter()
    going_on: set[str] = set()
    for text in texts:
        for word, _ in engine.pre_tokenizer.pre_tokenize_str(engine.normalizer.normalize_str(text)):
            counts.update(word)
            going_on.update(word[1:])
    kept: list[str] = []
    for letter in sorted(counts, key=lambda letter: (-counts[letter], letter)):
        forms = [letter, PREFIX + letter] if letter in going_on else [letter]
        if len(kept) + len(forms) > most:
            break
        kept += forms
    return sorted(kept)


def wordpiece_from_vocabulary(pieces: Sequence[str], *, lowercase: bool) -> Subwords:
    """WordPiece of a published `vocab.txt`: a piece a line, the line's number is its id."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    engine = Engine(models.WordPiece(vocabulary, unk_token=WRITTEN["unk"][0], max_input_chars_per_word=LONGEST_WORD))
    _as_bert(engine, lowercase)
    engine.add_special_tokens([ways[0] for ways in WRITTEN.values() if ways[0] in vocabulary])
    return Subwords(engine)


def from_hub(name: str) -> Subwords:
    """A tokeniser of the Hugging Face hub."""
    try:
        return Subwords(Engine.from_pretrained(name))
    except Exception as error:  # the library raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data.tokenizer hub:{name}: cannot be fetched ({reason}); check its name") from error


def _as_bert(engine: Engine, lowercase: bool) -> None:
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # strips accents if it lowers
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=PREFIX)
