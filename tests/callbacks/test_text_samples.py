"""Texts of causal and masked models after a validation, in a file and in the loggers."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.loggers import SafeWandbLogger
from callbacks.text_samples import TextSamples
from datamodules.text.subwords import wordpiece_from_vocabulary
from datamodules.text.tokenizers import Characters
from models.language import BERT, GPT

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat"]


class Data:
    """What the callback asks of a data module."""

    def __init__(self, tokenizer, rows, collate=None):
        self.tokenizer, self.rows, self.collate = tokenizer, rows, collate

    def dataset(self, split):
        assert split == "val"
        return SimpleNamespaceDataset(self.rows)


class SimpleNamespaceDataset:
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return self.rows[key[1]]


def run(callback, network, data, folder, **changes):
    usual = {
        "sanity_checking": False, "is_global_zero": True, "global_step": 7, "datamodule": data, "loggers": [],
        "state": SimpleNamespace(fn=TrainerFn.FITTING), "default_root_dir": str(folder),
        "precision_plugin": SimpleNamespace(forward_context=torch.no_grad),
    }  # fmt: skip
    trainer = SimpleNamespace(**usual | changes)
    module = SimpleNamespace(network=network, device=torch.device("cpu"), trainer=trainer)
    callback.on_validation_end(trainer, module)


@pytest.fixture
def characters():
    tokenizer = Characters("abcd ")
    text = "ab cd ab "
    ids = torch.tensor(tokenizer.encode(text))
    rows = [{"input_ids": ids.roll(i), "targets": ids.roll(i - 1)} for i in range(6)]
    torch.manual_seed(0)
    return GPT(vocab_size=5, layers=1, heads=1, hidden_size=8, context_length=16), Data(tokenizer, rows)


def test_causal_models_go_on_with_beginnings(characters, tmp_path):
    network, data = characters
    network.train()
    state = torch.get_rng_state()
    run(TextSamples(num_texts=3, prompt_tokens=4, max_new_tokens=5), network, data, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)  # or a resumed training would differ
    assert network.training
    blocks = (tmp_path / "samples" / "val_step_0000007.txt").read_text().split("\n\n")
    assert len(blocks) == 3
    for block, shift in zip(blocks, (0, 2, 4), strict=True):
        prompt, text = (line.partition("] ")[2] for line in block.rstrip("\n").split("\n"))
        assert prompt == data.tokenizer.decode(data.rows[shift]["input_ids"][:4].tolist())
        assert text.startswith(prompt) and len(text) == 9


def test_given_prompts_loggers_and_intervals(characters, tmp_path):
    network, data = characters
    tables = []

    class Fake(SafeWandbLogger):
        def log_texts(self, key, columns, rows, step):
            tables.append((key, columns, rows, step))

    callback = TextSamples(prompts=["ab", "d"], max_new_tokens=2, temperature=0, every_n_validations=2)
    for _ in range(3):
        run(callback, network, data, tmp_path, loggers=[Fake()])
    assert len(tables) == 1
    key, columns, rows, step = tables[0]
    assert (key, columns, step) == ("val/texts", ["prompt", "text"], 7)
    assert [row[0] for row in rows] == ["ab", "d"]
    run(callback, network, data, tmp_path, is_global_zero=False)
    run(callback, network, data, tmp_path, sanity_checking=True)
    assert len(tables) == 1


def test_masked_models_fill_in(tmp_path):
    torch.manual_seed(0)
    network = BERT(vocab_size=len(PIECES), layers=1, heads=1, hidden_size=8, context_length=8)
    rows = [[2, 5, 4, 8, 3, 0], [2, 4, 4, 3, 0, 0]]
    samples = [
        {"ids": rows[0], "places": [2, 0], "labels": [6, -100]},
        {"ids": rows[1], "places": [1, 2], "labels": [5, 7]},
    ]

    def collate(chosen):
        return {
            "input_ids": torch.tensor([sample["ids"] for sample in chosen]),
            "attention_mask": torch.tensor([sample["ids"] for sample in chosen]) != 0,
            "masked_positions": torch.tensor([sample["places"] for sample in chosen]),
            "masked_labels": torch.tensor([sample["labels"] for sample in chosen]),
        }

    data = Data(wordpiece_from_vocabulary(PIECES, lowercase=True), samples, collate)
    run(TextSamples(num_texts=2), network, data, tmp_path, state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    first, second = (tmp_path / "samples" / "val.txt").read_text().split("\n\n")
    masked, filled, truth = first.split("\n")
    assert masked == "[masked] [CLS] the [MASK] sat [SEP]"
    assert truth == "[truth] [CLS] the cat sat [SEP]"
    assert filled.startswith("[filled in] [CLS] the ")
    assert "[MASK] [MASK]" in second.split("\n")[0].replace("  ", " ")
    assert second.split("\n")[2].strip() == "[truth] [CLS] the dog [SEP]"
    assert network.training
