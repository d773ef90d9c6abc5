from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule

from datamodules.text import CausalTextData, TextFiles

FOLDER = Path(__file__).parents[3] / "configs" / "data"
NAMES = [
    "python_topics_words", "python_topics_bpe", "python_topics_elmo", "python_topics_bert",
    "python_topics_classification", "nsmc", "tinyshakespeare_char", "wikitext2",
]  # fmt: skip


def parsed(*args):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.instantiate_classes(parser.parse_args([f"--data={args[0]}", *args[1:]])).data


@pytest.mark.parametrize("name", NAMES)
def test_configurations_name_a_data_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = parsed(FOLDER / f"{name}.yaml")
    assert {"train", "val"} <= set(module.splits)
    assert not any(tmp_path.iterdir())  # nothing is read yet
    if name.startswith("python_topics"):
        assert module.vocab_size > 100
        batch = next(iter(module.train_dataloader()))
        assert len(batch["index"]) == module.batch_size
        assert module.size("val") >= len(next(iter(module.val_dataloader()))["index"])


def test_the_corpus_from_the_command_line(tmp_path):
    (tmp_path / "mine.txt").write_text("a few words\n" * 30)
    options = {"train": tmp_path / "mine.txt", "held_out": 0.5, "root": tmp_path}
    other = [f"--data.corpus.{name}={value}" for name, value in options.items()]
    module = parsed(FOLDER / "python_topics_words.yaml", "--data.corpus=datamodules.text.TextFiles", *other)
    assert isinstance(module, CausalTextData)
    assert type(module.corpus) is TextFiles
    assert module.tokenizer.tokens[2:] == ["a", "few", "words"]
    assert module.counts("val")["words"] == 45
