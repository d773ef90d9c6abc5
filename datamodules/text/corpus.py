"""Corpora of plain text: which files make up which split, and their texts, whole or by document and sentence."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from datamodules.download import download as fetch
from datamodules.download import unpack
from datamodules.text.reading import Source, lines, records, split_sentences
from datamodules.text.split_files import SplitFiles
from errors import UserError

TABLES = {".jsonl", ".parquet", ".csv", ".tsv"}
TEXTS = {".txt", ".text", ".tokens", ".md", ".raw", *TABLES}
CHUNK = 1 << 18  # characters
Files = str | list[str] | None


class TextFiles(SplitFiles):
    r"""Text files, UTF-8, of any language.

    A split is read in two ways. `texts` gives it whole, character by character. `documents` gives documents, each a
    list of sentences, for training on pairs of sentences or on single ones; empty lines are no sentences.

    Args:
        root: folder that the other paths are relative to.
        train: training files: a file, a folder (all its text files, sorted), a glob pattern, or a list of those.
            `.jsonl`, `.parquet`, `.csv` and `.tsv` hold a document a row, everything else is text.
        val: likewise for validation; None for none.
        test: likewise for testing; None for none.
        held_out: share of every training file, at its end, that is kept for validation instead; 0 keeps nothing.
        layout: what a document is in text files: what stands between `blank_lines`, each of the `lines`, or what
            follows a heading of the form ` = Title = `, as in `wikitext`.
        sentences: what a sentence is: a line (`lines`), or what ends with a full stop, question or exclamation mark
            (`split`).
        column: the column of tables that holds the text (`text` by default); other text files are taken for tables,
            separated by tabs, if it is given.
        name: of the corpus.
        url: an archive, or a single file, to fetch into `root` if `download` is true and the files are not there.
        md5: of what is fetched.
        download: whether to.
    """

    kind = "corpus"

    def __init__(
        self,
        root: str = ".",
        train: Files = "train.txt",
        val: Files = None,
        test: Files = None,
        held_out: float = 0.0,
        layout: Literal["blank_lines", "lines", "wikitext"] = "blank_lines",
        sentences: Literal["lines", "split"] = "lines",
        column: str | None = None,
        name: str = "text",
        url: str | None = None,
        md5: str | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, {"train": train, "val": val, "test": test}, held_out, name)
        self.layout = layout
        self.split_sentences = sentences == "split"
        self.column = column
        self.url = url
        self.md5 = md5
        self.download = download

    @property
    def options(self) -> list:
        """All that, besides the files' contents, decides what `texts` and `documents` give."""
        return [self.held_out, self.layout, self.split_sentences, self.column]

    def prepare(self) -> None:
        """Fetch what is missing, if asked to."""
        if self.url and self.download and not self._found("train"):
            file = fetch(self.url, self.root / self.url.rpartition("/")[2], self.md5)
            if file.suffix in (".zip", ".gz", ".tgz", ".tar"):
                unpack(file, self.root)

    def sources(self, split: str) -> list[Source]:
        """The files of a split, or the parts of files.

        Raises:
            UserError: there is no such split, or its files are not there.
        """
        wanted = self.files_split(split)
        found = self._found(wanted)
        if not found:
            fetching = "; --data.corpus.download true fetches it" if self.url else ""
            raise UserError(
                f"{self.root}: no text files found as data.corpus.{wanted} {self.files[wanted]!r}; name a file, a "
                f"folder or a glob pattern{fetching}"
            )
        if not self.held_out or wanted == "test":
            return [Source(path) for path in found]
        tables = [path for path in found if self._is_table(path)]
        if tables:
            raise UserError(f"{tables[0]}: data.corpus.held_out cuts text files only; give data.corpus.val instead")
        cuts = [(path, cut_at(path, 1 - self.held_out)) for path in found]
        return [Source(path, cut) if split == "val" else Source(path, 0, cut) for path, cut in cuts]

    def texts(self, split: str) -> Iterator[tuple[str, bool]]:
        """A split as it stands, in pieces of some 100,000 characters.

        Pieces end before white space, where no tokeniser joins what is on both sides.

        Yields:
            A piece, and whether a file or, in tables, a row ends with it.
        """
        for source in self.sources(split):
            if self._is_table(source.path):
                yield from ((text if text.endswith("\n") else f"{text}\n", True) for text in self._rows(source))
            else:
                yield from pieces(lines(source))

    def documents(self, split: str) -> Iterator[list[str]]:
        """The documents of a split, each a list of sentences; none is empty."""
        for source in self.sources(split):
            if self._is_table(source.path):
                groups: Iterable[list[str]] = (text.split("\n") for text in self._rows(source))
            else:
                groups = DOCUMENTS[self.layout](lines(source))
            for group in groups:
                sentences = [line.strip() for line in group if line.strip()]
                if self.split_sentences:
                    sentences = [sentence for line in sentences for sentence in split_sentences(line)]
                if sentences:
                    yield sentences

    def _rows(self, source: Source) -> Iterator[str]:
        return records(source, self.column)

    def _is_table(self, path: Path) -> bool:
        return self.column is not None or path.suffix.lower() in TABLES

    def _found(self, split: str) -> list[Path]:
        names = self.files[split]
        return [path for name in ([names] if isinstance(names, str) else names or []) for path in find(self.root, name)]


def find(root: Path, name: str) -> list[Path]:
    """A file, the text files below a folder, or what a glob pattern finds, relative to `root`; sorted."""
    path = root / name
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXTS and p.is_file())
    if path.is_file():
        return [path]
    base = Path(path.anchor) if path.is_absolute() else Path()
    return sorted(p for p in base.glob(str(path.relative_to(base))) if p.is_file())


def cut_at(path: Path, share: float) -> int:
    """The byte where `share` of a file ends, moved forward to where a UTF-8 character begins."""
    cut = int(path.stat().st_size * share)
    with open(path, "rb") as file:
        file.seek(cut)
        while (byte := file.read(1)) and byte[0] & 0b1100_0000 == 0b1000_0000:
            cut += 1
    return cut


def pieces(texts: Iterable[str], size: int = CHUNK) -> Iterator[tuple[str, bool]]:
    """Join lines into pieces of `size` characters or more that end before white space; the last is marked."""
    held: list[str] = []
    length = 0
    for text in texts:
        held.append(text)
        length += len(text)
        if length >= size:
            whole = "".join(held)
            done = whole.rstrip()
            if done:
                yield done, False
                held = [whole[len(done) :]]
                length = len(held[0])
    yield "".join(held), True


def between_blank_lines(texts: Iterable[str]) -> Iterator[list[str]]:
    """Runs of lines that are not empty."""
    run: list[str] = []
    for line in texts:
        if line.strip():
            run.append(line)
        elif run:
            yield run
            run = []
    yield run


def each_line(texts: Iterable[str]) -> Iterator[list[str]]:
    """Every line by itself."""
    return ([line] for line in texts)


def under_headings(texts: Iterable[str]) -> Iterator[list[str]]:
    """What follows a heading ` = Title = `, itself included; headings of lower rank (` = = Title = = `) are lines."""
    run: list[str] = []
    for line in texts:
        words = line.split()
        if len(words) > 2 and words[0] == words[-1] == "=" and words[1] != "=":
            yield run
            run = []
        run.append(line)
    yield run


DOCUMENTS = {"blank_lines": between_blank_lines, "lines": each_line, "wikitext": under_headings}
