"""What corpora and tables share: which files make up which split."""

from pathlib import Path
from typing import Any

from datamodules.resumable_module import SPLITS
from errors import UserError


class SplitFiles:
    """Base class; `kind` is what messages call the whole.

    Args:
        root: folder that the other paths are relative to.
        files: by split what names its files; None for none.
        held_out: share of the training data that is kept for validation instead.
        name: of the whole.
    """

    kind = "dataset"

    def __init__(self, root: str, files: dict[str, Any], held_out: float, name: str) -> None:
        if not 0 <= held_out < 1:
            raise UserError(f"data.corpus.held_out is {held_out}; it must be a share, at least 0 and below 1")
        if held_out and files["val"]:
            raise UserError("data.corpus.held_out and data.corpus.val both say what validation is; give one of them")
        self.root = Path(root)
        self.files = files
        self.held_out = held_out
        self.name = name

    @property
    def splits(self) -> list[str]:
        """The splits that there are files of."""
        return [split for split in SPLITS if self.files[split] or (split == "val" and self.held_out)]

    def prepare(self) -> None:
        """Make or fetch files that can be."""

    def files_split(self, split: str) -> str:
        """The split in whose files a split is, once they are prepared: `train` for what is held out.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.splits:
            raise UserError(f"the {self.kind} {self.name} has no {split} split; it has {', '.join(self.splits)}")
        self.prepare()
        return "train" if self.held_out and split == "val" else split
