"""Text files of all kinds, read piece by piece: memory use does not grow with their size."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError

BOM = b"\xef\xbb\xbf"
# A sentence ends at a mark, closing quotes or brackets included, before white space; East Asian marks need none.
SENTENCE_END = re.compile("(?<=[.!?\u2026])[\"')\u201d\u2019\\]]*\\s+|(?<=[\u3002\uff01\uff1f])\\s*")


@dataclass(frozen=True)
class Source:
    """A file, or the bytes from `start` to `stop` of one (None: to the end)."""

    path: Path
    start: int = 0
    stop: int | None = None


def lines(source: Source) -> Iterator[str]:
    r"""The lines of a UTF-8 file, each with its `\n` if it has one; a byte-order mark is dropped.

    Raises:
        UserError: the file cannot be read, or is no UTF-8; names the line.
    """
    try:
        with open(source.path, "rb") as file:
            number = 0
            if source.start:
                number = sum(chunk.count(b"\n") for chunk in _bytes(file, source.start))
            left = None if source.stop is None else source.stop - source.start
            for line in file:
                number += 1
                if left is not None:
                    if left <= 0:
                        return
                    line = line[:left]
                    left -= len(line)
                if number == 1:
                    line = line.removeprefix(BOM)
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{source.path}, line {number}: byte {error.start + 1} ({line[error.start]:#04x}) is no UTF-8; "
                        "convert the file to UTF-8"
                    ) from error
    except OSError as error:
        raise UserError(f"{source.path}: cannot be read ({error.strerror}); check data.corpus and its paths") from error


def _bytes(file: Any, count: int) -> Iterator[bytes]:
    while count > 0 and (chunk := file.read(min(count, 1 << 20))):
        count -= len(chunk)
        yield chunk


def records(source: Source, column: str | None) -> Iterator[str]:
    """The texts of a table, one a row: JSON lines, parquet, or separated columns.

    Args:
        source: a whole file, its kind told by its ending: `.jsonl`, `.parquet`, `.csv`; all others are separated by
            tabs, without quoting.
        column: which column holds the text; None is `text`.
    """
    for row in rows(source.path):
        yield cell(source.path, row, column or "text")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table with named columns; `#` is the number of the row's line in the file, from 1.

    Raises:
        UserError: a row is no JSON object, or has more or fewer cells than the header; names the line.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".jsonl":
        for number, line in enumerate(lines(Source(path)), 1):
            if line.strip():
                yield _json(path, number, line)
    else:
        table = cells(path)
        _, header = next(table, (1, []))
        for number, row in table:
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {number}: has {len(row)} cells, the header has {len(header)}; mend the line"
                )
            yield {"#": number, **dict(zip(header, row, strict=True))}


def cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table as they stand, with the number of their line, from 1: `.csv`, else separated by tabs.

    Tabs separate without quoting, as in the files of GLUE; a quotation mark there is a character like any other.
    """
    if path.suffix.lower() == ".csv":
        reader = csv.reader(lines(Source(path)))
        yield from ((reader.line_num, row) for row in reader if row)
        return
    for number, line in enumerate(lines(Source(path)), 1):
        line = line.rstrip("\r\n")
        if line:
            yield number, line.split("\t")


def cell(path: Path, row: dict[str, Any], column: str) -> str:
    """A cell as text.

    Raises:
        UserError: there is no such column; names the line and the columns.
    """
    if row.get(column) is None:
        there = ", ".join(repr(name) for name in row if name != "#")
        raise UserError(f"{path}, line {row['#']}: has no column {column!r} but {there}; name the one that is meant")
    return str(row[column])


def split_sentences(text: str) -> list[str]:
    """Cut running text behind full stops, question and exclamation marks that are followed by white space."""
    sentences = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        sentences.append(text[start : match.end()].strip())
        start = match.end()
    return [sentence for sentence in [*sentences, text[start:].strip()] if sentence]


def _json(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: is no JSON ({error.msg}); each line must be one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: is no JSON object; each line must be one, such as {{'text': '...'}}")
    return {"#": number, **row}


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path}: parquet files need the package pyarrow; pip install pyarrow") from error
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield {"#": number, **row}
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise UserError(f"{path}: cannot be read as parquet ({error}); fetch it again") from error
