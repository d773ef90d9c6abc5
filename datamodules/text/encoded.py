"""Texts as ids in flat arrays on disk: tokenised once, mapped into memory ever after."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datamodules.text.cache import Appender, FlatArray, token_type
from datamodules.text.tokenizers import Tokenizer

TEXTS_AT_ONCE = 16  # pieces of running text that are encoded together, on all cores
SENTENCES_AT_ONCE = 4096
Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def write_stream(folder: Path, texts: Iterable[tuple[str, bool]], tokenizer: Tokenizer) -> None:
    """Encode running text: `ids.bin`, and its size in all units in `about.json`.

    Args:
        folder: for the files.
        texts: pieces, and whether a document ends with them; see `TextFiles.texts`. A document ends with `eos`, if
            there is one.
        tokenizer: for the ids.
    """
    counts = dict.fromkeys(("tokens", "words", "characters", "bytes"), 0)
    last = None
    with Appender(folder / "ids.bin", token_type(tokenizer.vocab_size)) as ids:
        for batch in batched(texts, TEXTS_AT_ONCE):
            for (text, ends), encoded in zip(batch, tokenizer.encode_batch([t for t, _ in batch]), strict=True):
                ids.add(encoded)
                last = encoded[-1] if len(encoded) else last
                if ends and tokenizer.eos is not None and last != tokenizer.eos:
                    ids.add([tokenizer.eos])
                    last = tokenizer.eos
                counts["words"] += len(text.split())
                counts["characters"] += len(text)
                counts["bytes"] += len(text.encode())
    write_about(folder, **counts | {"tokens": ids.length}, dtype=ids.dtype.str)


def write_documents(folder: Path, documents: Iterable[list[str]], tokenizer: Tokenizer) -> None:
    """Encode documents: `ids.bin`, where sentences begin in it, where documents begin among the sentences.

    Sentences without a token are left out, and so are documents without a sentence.
    """

    def flat() -> Iterator[tuple[str, bool]]:
        for document in documents:
            yield from ((sentence, i == 0) for i, sentence in enumerate(document))

    pending = False  # whether a document begins with the next sentence that has tokens
    with (
        Appender(folder / "ids.bin", token_type(tokenizer.vocab_size)) as ids,
        Appender(folder / "sentences.bin", np.int64) as starts,
        Appender(folder / "documents.bin", np.int64) as firsts,
    ):
        for batch in batched(flat(), SENTENCES_AT_ONCE):
            for (_, first), encoded in zip(batch, tokenizer.encode_batch([s for s, _ in batch]), strict=True):
                pending = pending or first
                if len(encoded):
                    if pending:
                        firsts.add([starts.length])
                        pending = False
                    starts.add([ids.length])
                    ids.add(encoded)
        firsts.add([starts.length])
        starts.add([ids.length])
    write_about(folder, tokens=ids.length, sentences=starts.length - 1, dtype=ids.dtype.str)


def write_about(folder: Path, **about: Any) -> None:
    """Keep numbers beside arrays."""
    (folder / "about.json").write_text(json.dumps(about))


def read_about(folder: Path) -> dict[str, Any]:
    """What `write_about` wrote."""
    return json.loads((folder / "about.json").read_text())


def read_ids(folder: Path) -> FlatArray:
    """The ids that either function wrote."""
    return FlatArray(folder / "ids.bin", read_about(folder)["dtype"])
