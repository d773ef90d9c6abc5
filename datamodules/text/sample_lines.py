"""The sample of labelled sentences: lines of Python's documentation, and whether they are prose or code."""

import os
from pydoc_data.topics import topics

from datamodules.locking import locked
from datamodules.text.labelled import LabelledFiles
from datamodules.text.sample import FILES, deal, documents, paragraphs
from errors import UserError

CLASSES = ("prose", "code")


class PythonLines(LabelledFiles):
    """Lines of the Python documentation topics that are prose or code, written to `<root>/{train,val,test}.tsv`.

    A line is code if its paragraph is: a listing, a session, a grammar or a table, by the way it is set. The label is
    thus not in the words themselves, most of the time they give it away. Topics belong to the same splits as in
    `PythonTopics`, so that a model pretrained on that corpus has seen none of the lines of validation and test; a line
    that occurs again is kept once. About a third is code.

    Args:
        root: folder of the files.
    """

    def __init__(self, root: str = "data/python_lines") -> None:
        super().__init__(root, "train.tsv", "val.tsv", "test.tsv", labels=CLASSES, name="python_lines")

    def prepare(self) -> None:
        """Write the files, unless they are there."""
        last = self.root / "test.tsv"
        if last.exists():
            return
        try:
            with locked(last):
                if not last.exists():  # it is written last
                    seen: set[str] = set()
                    for split, rows in labelled_lines(topics).items():
                        new = [(text, label) for text, label in rows if not (text in seen or seen.add(text))]
                        table = "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *new])
                        (self.root / f".{split}.tsv").write_text(table, "utf-8")
                        os.replace(self.root / f".{split}.tsv", self.root / f"{split}.tsv")
        except OSError as error:
            raise UserError(
                f"{self.root}: the sample cannot be written ({error.strerror}); name another folder with "
                "--data.corpus.root"
            ) from error


def labelled_lines(texts: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Per split its lines, without tabs, and whether they are `prose` or `code`."""
    found = paragraphs(texts)
    dealt = deal(documents(texts))
    return {
        split: [
            (line.replace("\t", " "), CLASSES[is_code])
            for name in dealt[split]
            for lines, is_code in found[name]
            for line in lines
        ]
        for split in FILES
    }
