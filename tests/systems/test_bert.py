"""BERT through the command line: pretraining, evaluation, resumption, several processes, fine-tuning, use."""

import json
import math
import signal

import numpy as np
import pytest
import torch

from inference import load
from tests.helpers import ROOT, assert_equal, finish, last_checkpoint, train
from train import main

QUIET = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=5",
]  # fmt: skip
TINY = [
    "--config", str(ROOT / "configs" / "bert_tiny.yaml"), *QUIET, "--model.network.layers=1",
    "--model.network.hidden_size=32", "--model.network.context_length=32", "--model.network.dropout=0.1",
    "--data.corpus=datamodules.text.TextFiles", "--data.corpus.root=.", "--data.corpus.train=train.txt",
    "--data.corpus.val=val.txt", "--data.corpus.test=val.txt", "--data.vocabulary=80", "--data.context=32",
    "--data.passes=1", "--data.batch_size=8", "--model.optimizer.lr=0.01",
]  # fmt: skip
FIT = ["--trainer.max_steps=80", "--trainer.val_check_interval=40"]
DATA = [
    "--data.corpus=datamodules.text.LabelledFiles", "--data.corpus.root=.", "--data.corpus.train=train.tsv",
    "--data.corpus.val=val.tsv", "--data.context=32", "--data.batch_size=8",
]  # fmt: skip
TUNE = [
    "--config", str(ROOT / "configs" / "finetune_bert.yaml"), *QUIET, *DATA, "--model.network.encoder.layers=1",
    "--model.network.encoder.hidden_size=32", "--model.network.encoder.context_length=32", "--trainer.max_epochs=5",
    "--model.optimizer.lr=0.005",
]  # fmt: skip
TOKENS = ["--data.tokenizer=run/checkpoints/best.ckpt", "--data.vocabulary=null", "--data.lowercase=false"]


def write_corpus(folder):
    """Documents that each speak of one animal: what a masked word is, and whether B follows A, can be learnt."""
    rng = np.random.default_rng(0)
    animals = ["cat", "dog", "bird", "horse"]

    def sentence(animal):
        verb, thing = rng.choice(["sees", "hears", "likes"]), rng.choice(["tree", "stone", "house"])
        return f"the {animal} {verb} the {thing}."

    for split, number in {"train": 120, "val": 30}.items():
        documents = ["\n".join(sentence(animals[i % 4]) for _ in range(6)) for i in range(number)]
        (folder / f"{split}.txt").write_text("\n\n".join(documents) + "\n")
        chosen = rng.choice(animals, number)
        rows = [f"{sentence(animal)}\t{'pet' if animal in ('cat', 'dog') else 'other'}\n" for animal in chosen]
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(rows))
    (folder / "texts.txt").write_text("the cat sees the tree.\nthe bird likes the house.\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a corpus, a short pretraining in `run` and a fine-tuning of it in `tuned`."""
    folder = tmp_path_factory.mktemp("bert")
    write_corpus(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TINY, *FIT, "--run_dir=run"]) == 0
        assert main([*TUNE, *TOKENS, "--model.weights=run/checkpoints/best.ckpt", "--run_dir=tuned"]) == 0
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def results(run):
    return json.loads((run / "results.json").read_text())


def test_pretraining_learns(folder):
    found = results(folder / "run")
    for split in ("val", "test"):
        values = found[split]
        assert values["loss"] == pytest.approx(values["masked_loss"] + values["next_sentence_loss"])
        assert values["masked_loss"] < 0.6 * math.log(80)  # it begins at the vocabulary's
        assert values["masked_accuracy"] > 0.4
        assert values["next_sentence_accuracy"] > 0.5
        assert values["masked_perplexity"] == pytest.approx(math.exp(values["masked_loss"]), rel=1e-6)
        assert "perplexity" not in values and "bits_per_byte" not in values


def test_evaluation_depends_neither_on_batches_nor_on_processes_nor_on_the_seed(inside):
    arguments = ["validate", *TINY, "--ckpt_path=run/checkpoints/best.ckpt"]
    two = train(*arguments, "--data.eval_batch_size=1", "--trainer.devices=2", "--run_dir=two")
    assert main([*arguments, "--run_dir=one", "--data.eval_batch_size=1", "--seed_everything=5"]) == 0
    assert main([*arguments, "--run_dir=large", "--data.eval_batch_size=50", "--data.passes=3"]) == 0
    status, output = finish(two)
    assert status == 0, output
    one = results(inside / "one")["val"]
    assert results(inside / "two")["val"] == one
    assert results(inside / "large")["val"] == pytest.approx(one, rel=1e-6)


def test_killed_and_resumed_ends_bit_identical(inside):
    training = [
        *TINY, "--trainer.max_steps=30", "--trainer.val_check_interval=15", "--last_checkpoint.every_n_train_steps=10",
        "--trainer.logger=callbacks.loggers.AppendingCSVLogger",
    ]  # fmt: skip
    kill = ["--trainer.callbacks+=tests.helpers.SignalAt", "--trainer.callbacks.batch=27"]
    whole, killed = train(*training, "--run_dir=whole"), train(*training, "--run_dir=killed", *kill)
    status, output = finish(killed)
    assert status == -signal.SIGKILL, output
    assert last_checkpoint(inside / "killed").name == "last-00000020.ckpt"
    assert main([*training, "--run_dir=killed", "--ckpt_path=last", "--data.num_workers=2"]) == 0
    status, output = finish(whole)
    assert status == 0, output
    a, b = (torch.load(last_checkpoint(inside / run), weights_only=True) for run in ("whole", "killed"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "random_states"):
        assert_equal(a[key], b[key], key)
    assert results(inside / "whole")["test"] == results(inside / "killed")["test"]


def test_filling_in_and_vectors_from_the_command_line(inside):
    (inside / "blanks.txt").write_text("the [MASK] sees the tree.\nthe cat likes the house.\n")
    arguments = ["predict", *TINY, "--model.prediction.embeddings=true", "--ckpt_path=run/checkpoints/best.ckpt"]
    assert main([*arguments, "--data.texts=blanks.txt", "--run_dir=filled"]) == 0
    folder = inside / "filled" / "predictions"
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    vectors = np.load(folder / "embeddings.npz")
    model = load("run/checkpoints/best.ckpt")
    for i, row in enumerate(rows):
        assert vectors[str(i)].shape == (len(row["pieces"]), 32)
        np.testing.assert_allclose(vectors[str(i)], model.embed(row["text"]).vectors, atol=1e-5)
    assert [row["text"] for row in rows] == (inside / "blanks.txt").read_text().splitlines()


def test_fine_tuning_starts_from_the_encoder(folder):
    found = results(folder / "tuned")["val"]
    assert found["accuracy"] > 0.9 and found["matthews"] > 0.8
    assert found["loss"] == found["cross_entropy"]
    start = torch.load(folder / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    tuned = torch.load(folder / "tuned" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    change = tuned["network.encoder.tokens.weight"] - start["network.tokens.weight"]
    assert 0 < change.abs().max() < 0.2
    head = "masked_head.dense.weight"
    assert torch.equal(tuned[f"network.encoder.{head}"], start[f"network.{head}"])


def test_classifying_from_the_command_line_and_from_python(inside):
    checkpoint = "tuned/checkpoints/best.ckpt"
    arguments = ["predict", *TUNE, *TOKENS, f"--ckpt_path={checkpoint}", "--data.texts=texts.txt", "--run_dir=out"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (inside / "out" / "predictions" / "texts.jsonl").read_text().splitlines()]
    assert [(row["index"], row["label"]) for row in rows] == [(0, "pet"), (1, "other")]
    found = load(checkpoint)((inside / "texts.txt").read_text().splitlines())
    for row, result in zip(rows, found, strict=True):
        assert row["label"] == result["label"]
        assert row["probabilities"] == pytest.approx(result["probabilities"], abs=1e-6)


def test_the_bag_of_words_learns(inside):
    baseline = ["--config", str(ROOT / "configs" / "finetune_bow.yaml"), *QUIET, *DATA, "--data.vocabulary=80"]
    assert main([*baseline, "--model.optimizer.lr=0.1", "--trainer.max_epochs=5", "--run_dir=words"]) == 0
    assert results(inside / "words")["val"]["accuracy"] > 0.9


def test_mistakes_are_sentences(inside, capsys):
    for arguments, message in (
        ([*TINY, *FIT, "--data.context=64", "--run_dir=x"], "do not fit context_length 32"),
        ([*TUNE, "--model.weights=run/checkpoints/best.ckpt", "--run_dir=y"], "another tokeniser: take theirs by"),
        ([*TUNE, "--data.corpus.label=stars", "--run_dir=z"], "train.tsv, line 2: has no column 'stars'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
