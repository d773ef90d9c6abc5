"""Tables of labelled sentences or pairs of sentences: which files and columns, and what the labels are."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.text.corpus import find
from datamodules.text.reading import Source, cell, cells, rows
from datamodules.text.split_files import SplitFiles
from errors import UserError

log = logging.getLogger(__name__)

WITHOUT_SKIPPING = (".jsonl", ".parquet")


class Example(NamedTuple):
    """A row of a table.

    Attributes:
        text: the sentence, or the first of two.
        second: the other; empty where there is none.
        label: as it is written.
        place: file and line.
    """

    text: str
    second: str
    label: str
    place: str


class LabelledFiles(SplitFiles):
    """Files with a labelled text, or pair of texts, a row: separated by tabs (without quoting), CSV, JSONL or parquet.

    Args:
        root: folder that the other paths are relative to.
        train: training file, or a glob pattern.
        val: likewise for validation; None for none.
        test: likewise for testing; None for none.
        text: the column of the sentence, or of the first of two.
        second: the column of the other sentence; None for single ones.
        label: the column of the label.
        columns: the names of all columns of files that have no header; None: their first line has them.
        labels: the classes in their order; None takes those of the training files, numbers by size, else by alphabet.
        regression: whether labels are numbers to predict, rather than classes.
        held_out: share of the training rows, evenly spread, that is kept for validation instead.
        skip_bad_rows: leave out lines with a wrong number of cells (the QQP of GLUE has some) rather than stop.
        name: of the dataset.
    """

    def __init__(
        self,
        root: str = ".",
        train: str = "train.tsv",
        val: str | None = None,
        test: str | None = None,
        text: str = "text",
        second: str | None = None,
        label: str = "label",
        columns: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        regression: bool = False,
        held_out: float = 0.0,
        skip_bad_rows: bool = False,
        name: str = "table",
    ) -> None:
        super().__init__(root, {"train": train, "val": val, "test": test}, held_out, name)
        self.text = text
        self.second = second
        self.label = label
        self.columns = columns
        self.labels = labels
        self.regression = regression
        self.skip_bad_rows = skip_bad_rows

    @property
    def options(self) -> list:
        """All that, besides the files' contents, decides what `examples` gives."""
        return [self.text, self.second, self.label, self.columns, self.regression, self.held_out, self.skip_bad_rows]

    @cached_property
    def class_names(self) -> list[str]:
        """The classes in their order; empty for regression.

        Raises:
            UserError: fewer than two.
        """
        if self.regression:
            return []
        if self.labels is not None:
            return [str(label) for label in self.labels]
        found = {example.label for example in self._examples("train")}
        if len(found) < 2:
            raise UserError(
                f"{self.root}: the column {self.label!r} of the training files has {len(found)} different labels; name "
                "the classes with --data.corpus.labels, or set --data.corpus.regression true"
            )
        numbers = all(label.removeprefix("-").isdigit() for label in found)
        return sorted(found, key=int if numbers else None)

    def sources(self, split: str) -> list[Source]:
        """The files of a split.

        Raises:
            UserError: there is no such split, or its files are not there.
        """
        wanted = self.files_split(split)
        found = find(self.root, self.files[wanted])
        if not found:
            raise UserError(
                f"{self.root / self.files[wanted]}: there is no such file; name it with --data.corpus.root and "
                f"--data.corpus.{wanted}"
            )
        return [Source(path) for path in found]

    def examples(self, split: str) -> Iterator[tuple[Example, float]]:
        """The rows of a split, each with its label as a number: of its class, or the number that it is.

        Raises:
            UserError: a row lacks a column, or has a label that is no class or no number; names the line.
        """
        classes = {name: float(i) for i, name in enumerate(self.class_names)}
        for example in self._examples(split):
            if self.regression:
                try:
                    yield example, float(example.label)
                except ValueError as error:
                    raise UserError(
                        f"{example.place}: the label {example.label!r} is no number; mend it, or set "
                        "--data.corpus.regression false"
                    ) from error
            elif example.label in classes:
                yield example, classes[example.label]
            else:
                raise UserError(
                    f"{example.place}: the label {example.label!r} is none of {', '.join(classes)}; mend it, or name "
                    "all classes with --data.corpus.labels"
                )

    def texts(self, split: str) -> Iterator[tuple[str, bool]]:
        """The sentences of a split, to train a tokeniser; see `TextFiles.texts`."""
        for example in self._examples(split):
            for text in (example.text, example.second):
                if text:
                    yield f"{text}\n", True

    def _examples(self, split: str) -> Iterator[Example]:
        number = 0
        for source in self.sources(split):
            for row in self._rows(source.path):
                number += 1
                kept_out = int(number * self.held_out) > int((number - 1) * self.held_out)
                if not self.held_out or split == "test" or kept_out == (split == "val"):
                    yield Example(
                        cell(source.path, row, self.text),
                        cell(source.path, row, self.second) if self.second else "",
                        cell(source.path, row, self.label).strip(),
                        f"{source.path}, line {row['#']}",
                    )

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        if path.suffix.lower() in WITHOUT_SKIPPING:
            yield from rows(path)
            return
        table = cells(path)
        header = list(self.columns) if self.columns else next(table, (1, []))[1]
        skipped = 0
        for number, row in table:
            if len(row) == len(header):
                yield {"#": number, **dict(zip(header, row, strict=True))}
            elif self.skip_bad_rows:
                skipped += 1
            else:
                raise UserError(
                    f"{path}, line {number}: has {len(row)} cells instead of {len(header)}; mend the line, or set "
                    "--data.corpus.skip_bad_rows true"
                )
        if skipped:
            log.warning("%s: %d lines with a wrong number of cells are left out", path, skipped)


# Columns of GLUE's files: text, second text, label, where not `label`; and what else differs. Files of other tasks than
# MNLI are train.tsv and dev.tsv; the labels of test.tsv are not public.
GLUE: dict[str, dict[str, Any]] = {
    "cola": {"text": "sentence", "columns": ["source", "label", "mark", "sentence"]},
    "sst2": {"text": "sentence"},
    "mrpc": {"text": "#1 String", "second": "#2 String", "label": "Quality"},
    "qqp": {"text": "question1", "second": "question2", "label": "is_duplicate", "skip_bad_rows": True},
    "stsb": {"text": "sentence1", "second": "sentence2", "label": "score", "regression": True},
    "mnli": {
        "text": "sentence1",
        "second": "sentence2",
        "label": "gold_label",
        "val": "dev_matched.tsv",
        "test": "dev_mismatched.tsv",
    },
    "qnli": {"text": "question", "second": "sentence"},
    "rte": {"text": "sentence1", "second": "sentence2"},
    "wnli": {"text": "sentence1", "second": "sentence2"},
}


class GlueFiles(LabelledFiles):
    """A task of GLUE, in the layout of gluebenchmark.com.

    Validation is on `dev.tsv`; of MNLI the matched part of it is, and testing is on the mismatched part.

    Args:
        task: one of cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli.
        root: folder of the task's files.
    """

    def __init__(self, task: str, root: str) -> None:
        if task not in GLUE:
            raise UserError(f"GLUE has no task {task!r}: choose one of {', '.join(GLUE)}")
        super().__init__(root, **{"val": "dev.tsv", "name": task, **GLUE[task]})
