"""What the data modules of all language tasks share: corpus, tokeniser, order and loaders."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.loader import ResumableLoader, SampleKey
from datamodules.resumable_module import ResumableDataModule
from datamodules.text.cache import Cache, digest_of
from datamodules.text.corpus import TextFiles
from datamodules.text.making import TokenizerRecipe, save
from datamodules.text.reading import Source, lines
from datamodules.text.sample import PythonTopics
from datamodules.text.tokenizers import Tokenizer
from errors import UserError

# The special tokens of a tokeniser that is trained for running text. Characters and bytes get none: their text is whole
# as it stands. Words always end lines.
ENDS = {"bpe": ("eos",)}


class LanguageDataModule(ResumableDataModule):
    """Base class; a task defines `_dataset` and `collate`.

    Constructing touches no file. What is first asked for reads the corpus, trains the tokeniser and encodes; the
    results are kept in `cache`, so that the second start is immediate and memory use does not grow with the corpus.

    Args:
        corpus: where the text comes from; None is the sample corpus.
        tokenizer: one to train on the training split (`characters`, `bytes`, `words`, `bpe`, `wordpiece`), a file
            (`tokenizer.json`, `vocab.txt`, a checkpoint of a language model), or `hub:NAME`.
        vocabulary: the most tokens that training it makes; None is no limit (characters, words), 8000 (others).
        min_count: what occurs less often becomes unknown (characters, words), or is not merged.
        lowercase: lower letters, and strip accents as BERT does; not for Korean.
        split_punctuation: cut words from punctuation marks (words only).
        cache: folder for tokenisers and ids; None is `.tokens` in the corpus's folder.
        batch_size: rows per step and process.
        eval_batch_size: likewise for validation, test and prediction; None is `batch_size`.
        num_workers: processes that make batches; 0 makes them in the training process. Never changes what is made.
        shuffle: whether training samples come in a new order each epoch.
        texts: for prediction: a text file, one text a line.
        seed: of order and of all that is drawn; linked to `seed_everything`.
    """

    roles: tuple[str, ...] = ()  # of the special tokens that the task needs

    def __init__(
        self,
        *,
        corpus: TextFiles | None = None,
        tokenizer: str = "bpe",
        vocabulary: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
        split_punctuation: bool = False,
        cache: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        shuffle: bool = True,
        texts: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            shuffle=shuffle,
            seed=seed,
        )
        self.corpus = corpus or PythonTopics()
        self.recipe = TokenizerRecipe(
            tokenizer,
            vocabulary=vocabulary,
            min_count=min_count,
            lowercase=lowercase,
            split_punctuation=split_punctuation,
            specials=self.roles or ENDS.get(tokenizer, ()),
        )
        self.cache = Cache(Path(cache) if cache else self.corpus.root / ".tokens")
        self.texts = texts
        self._datasets: dict[str, Dataset] = {}

    @property
    def name(self) -> str:
        """That of the corpus."""
        return self.corpus.name

    @property
    def splits(self) -> list[str]:
        """Which of train, val and test there are."""
        return self.corpus.splits

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Trained on the training split, or loaded."""
        if not self.recipe.is_trained:
            tokenizer = self.recipe.load()
        else:

            def make(folder: Path) -> None:
                save(self.recipe.train(Again(self._training_texts)), folder / "tokenizer.json")

            folder = self.cache.made(["tokenizer", self.recipe.options, self._content("train")], make)
            tokenizer = TokenizerRecipe(str(folder / "tokenizer.json")).load()
        missing = [role for role in self.roles if role not in tokenizer.specials]
        if missing:
            raise UserError(
                f"data.tokenizer {self.recipe.tokenizer} has no token for {', '.join(missing)}, which "
                f"{type(self).__name__} needs; take one that has"
            )
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.tokenizer.vocab_size

    @property
    def fingerprint(self) -> str:
        """A hash over the texts of all splits and the tokeniser."""
        content = {split: self._content(split) for split in self.splits}
        return digest_of([content, self.tokenizer.state()])[:16]

    def description(self) -> dict[str, Any]:
        """What a checkpoint keeps of its data, in JSON types: enough to use the model without the dataset."""
        return {
            "task": "language",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.state(),
        }

    def size(self, split: str) -> int:
        """Number of samples of a split in evaluation."""
        return len(self.dataset(split))

    def units(self, split: str) -> dict[str, int]:
        """Numbers of `words`, `characters` and `bytes` of the text that evaluation scores; empty if it scores parts."""
        return {}

    def dataset(self, split: str) -> Dataset:
        """A split as samples of evaluation, the same for all seeds, epochs and processes.

        Raises:
            UserError: there is no such split.
        """
        if split not in self._datasets:
            self.check_split(split)
            self._datasets[split] = self._dataset(split, training=False)
        return self._datasets[split]

    @abstractmethod
    def _dataset(self, split: str, training: bool) -> Dataset:
        """A split as samples."""

    def train_dataloader(self) -> ResumableLoader:
        """In random order, resumable."""
        self.check_split("train")
        dataset = self._dataset("train", training=True)
        batches = self._in_random_order(dataset)
        return self._loader(FirstEpoch(dataset) if self._overfits else dataset, batches)

    def predict_dataloader(self) -> ResumableLoader:
        """The lines of `texts` in order, as they stand: `texts`, a list of strings, and `index` (B,)."""
        dataset = Lines(self.predict_texts)
        return ResumableLoader(dataset, self._in_order(dataset), collate=collate_lines, num_workers=self.num_workers)

    @property
    def predict_texts(self) -> list[str]:
        """The texts to predict on, without empty lines.

        Raises:
            UserError: `texts` is not given or has none.
        """
        if self.texts is None:
            raise UserError("nothing to predict on: name a text file, one text a line, with --data.texts")
        found = [text for line in lines(Source(Path(self.texts))) if (text := line.strip())]
        if not found:
            raise UserError(f"{self.texts}: is empty; write one text a line")
        return found

    def _training_texts(self) -> Iterator[str]:
        return (text for text, _ in self.corpus.texts("train"))

    def _content(self, split: str) -> list:
        sources = self.corpus.sources(split)
        return [self.corpus.options, [[self.cache.digest(s.path), s.start, s.stop] for s in sources]]


class Again:
    """An iterable that begins anew every time it is iterated."""

    def __init__(self, begin: Callable[[], Iterator[str]]) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[str]:
        return self.begin()


class FirstEpoch(Dataset):
    """Every epoch as the first: what is drawn at random stays, as overfitting a batch needs it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Any:
        return self.dataset[0, key[1]]


class Lines(Dataset):
    """Texts as they stand, with their indices."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, key: SampleKey) -> tuple[int, str]:
        return key[1], self.texts[key[1]]


def collate_lines(samples: Iterable[tuple[int, str]]) -> dict[str, Any]:
    """A batch of texts."""
    index, texts = zip(*samples, strict=True)
    return {"texts": list(texts), "index": torch.tensor(index)}
