"""The sample corpus: real English that comes with every Python, the topics of its `help()`."""

import hashlib
import os
import re
from pydoc_data.topics import topics
from typing import Literal

from datamodules.locking import locked
from datamodules.text.corpus import TextFiles
from datamodules.text.reading import split_sentences
from errors import UserError

FILES = {"train": "train.txt", "val": "valid.txt", "test": "test.txt"}
SHARES = {"test": 0.1, "val": 0.1}  # of the text; training has the rest
DECORATION = re.compile(r"^[*=\-~^\"+|]{3,}$")  # a heading's underline, a table's ruler
CODE = re.compile(r">>>|::=|^ *[|+]|^ {3,}\S.*[^.:;!?]\Z", re.MULTILINE)  # or a table


class PythonTopics(TextFiles):
    """The Python documentation topics, written to `<root>/{train,valid,test}.txt` on first use.

    A topic is a document, a line one sentence, heading or line of code; a blank line separates documents. Topics are
    dealt to the splits whole. Python's topics quote each other at length: of paragraphs that occur again, only the
    first is kept, so that no split holds text of another. The text belongs to the Python that wrote it (PSF licence).

    Args:
        root: folder of the files.
        sentences: see `TextFiles`.
    """

    def __init__(self, root: str = "data/python_topics", sentences: Literal["lines", "split"] = "lines") -> None:
        super().__init__(root, **FILES, sentences=sentences, name="python_topics")

    def prepare(self) -> None:
        """Write the files, unless they are there."""
        last = self.root / FILES["test"]
        if last.exists():
            return
        try:
            with locked(last):
                if not last.exists():  # it is written last
                    texts = documents(topics)
                    dealt = deal(texts)
                    for name, file in FILES.items():
                        text = "\n".join("".join(f"{line}\n" for line in texts[topic]) for topic in dealt[name])
                        (self.root / f".{file}").write_text(text, "utf-8")
                        os.replace(self.root / f".{file}", self.root / file)
        except OSError as error:
            raise UserError(
                f"{self.root}: the sample corpus cannot be written ({error.strerror}); name another folder with "
                "--data.corpus.root"
            ) from error


def documents(texts: dict[str, str]) -> dict[str, list[str]]:
    """Per topic its sentences, headings and lines of code, without paragraphs that a longer topic has too."""
    return {name: [line for lines, _ in found for line in lines] for name, found in paragraphs(texts).items()}


def paragraphs(texts: dict[str, str]) -> dict[str, list[tuple[list[str], bool]]]:
    """Per topic its paragraphs as lines, and whether each is code or a table; see `documents`."""
    seen: set[str] = set()
    result = {}
    for name in sorted(texts, key=lambda name: (-len(texts[name]), name)):
        found: list[tuple[list[str], bool]] = []
        for paragraph in re.split(r"\n\s*\n", texts[name]):
            new = paragraph_lines(paragraph)
            key = " ".join(new)
            if new and key not in seen:
                seen.add(key)
                found.append((new, CODE.search(paragraph) is not None))
        if found:
            result[name] = found
    return result


def paragraph_lines(paragraph: str) -> list[str]:
    """A paragraph as lines: sentences of prose, code as it stands but for its indentation, no underlines."""
    kept = [line.strip() for line in paragraph.split("\n") if not DECORATION.match(line.strip())]
    kept = [line for line in kept if line]
    return kept if CODE.search(paragraph) else split_sentences(" ".join(kept))


def deal(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Deal documents, by name, to the splits in the order of their names' hashes, so that it is the same everywhere.

    A document that would alone fill half of the share of a small split goes to training.
    """
    sizes = {name: sum(len(line) + 1 for line in text) for name, text in texts.items()}
    total = sum(sizes.values())
    room = {split: share * total for split, share in SHARES.items()}
    dealt: dict[str, list[str]] = {split: [] for split in FILES}
    for name in sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        fitting = [s for s, left in room.items() if left > 0 and sizes[name] < SHARES[s] / 2 * total]
        split = fitting[0] if fitting else "train"
        dealt[split].append(name)
        room[split] = room.get(split, 0) - sizes[name]
    return dealt
