"""GPT through the command line: training, evaluation, use, resumption, several processes."""

import json
import math
import signal

import numpy as np
import pytest
import torch
import yaml

from errors import UserError
from inference import load
from models.language import GPT
from tests.helpers import ROOT, assert_equal, finish, last_checkpoint, train
from train import main

CONFIG = str(ROOT / "configs" / "gpt_char.yaml")
TINY = [
    "--config", CONFIG, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=5",
    "--model.network.layers=1", "--model.network.heads=2", "--model.network.hidden_size=16",
    "--model.network.context_length=16", "--model.network.dropout=0.1", "--data.corpus=datamodules.text.TextFiles",
    "--data.corpus.root=.",
    "--data.corpus.train=train.txt", "--data.corpus.val=val.txt", "--data.corpus.test=test.txt", "--data.min_count=1",
    "--data.context=16", "--data.batch_size=8", "--model.optimizer.lr=0.02", "--model.schedule.warmup_steps=5",
]  # fmt: skip
FIT = ["--trainer.max_steps=60", "--trainer.val_check_interval=30"]
PREDICT = ["--model.prediction.max_new_tokens=8", "--model.prediction.embeddings=true"]


def write_corpus(folder):
    """Sentences of a small grammar, so that there is something to learn."""
    rng = np.random.default_rng(0)
    words = (["the", "a"], ["cat", "dog", "bird"], ["sees", "hears"], ["the", "a"], ["tree", "stone"])
    for split, sentences in {"train": 200, "val": 20, "test": 20}.items():
        lines = [" ".join(rng.choice(choices) for choices in words) + ".\n" for _ in range(sentences)]
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "texts.txt").write_text("the cat\na dog sees\nthe bird hears a stone and\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a corpus and a short training in `run`."""
    folder = tmp_path_factory.mktemp("gpt")
    write_corpus(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TINY, *FIT, "--run_dir=run"]) == 0
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "run" / "checkpoints" / "best.ckpt")


def results(run):
    return json.loads((run / "results.json").read_text())


def test_training_learns_and_leaves_a_complete_run(folder):
    found = results(folder / "run")
    for split in ("val", "test"):
        values = found[split]
        assert values["loss"] == values["next_token_loss"] < 0.5 * math.log(20)  # it begins at the vocabulary's
        assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
        assert values["next_token_accuracy"] > 0.5
        text = (folder / f"{split}.txt").read_text()
        nats = values["loss"] * (len(text) - 1)  # of all characters but the first
        assert values["bits_per_character"] == values["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text))
        assert values["word_perplexity"] == pytest.approx(math.exp(nats / len(text.split())))
    header, *rows = (folder / "run" / "metrics.csv").read_text().splitlines()
    speeds = [row.split(",")[header.split(",").index("train/tokens_per_second")] for row in rows]
    assert any(float(speed) > 0 for speed in speeds if speed)
    assert "train/mfu" not in header  # nobody knows a CPU's peak
    samples = sorted(path.name for path in (folder / "run" / "samples").iterdir())
    assert samples == ["val.txt", "val_step_0000030.txt", "val_step_0000060.txt"]
    assert (folder / "run" / "samples" / "val.txt").read_text().count("[prompt] ") == 4


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_of_the_checkpoint_equals_the_one_after_fit(inside, command):
    before = results(inside / "run")
    assert main([command, *TINY, "--ckpt_path=run/checkpoints/best.ckpt"]) == 0
    after = results(inside / "run")
    assert (after["val"], after["test"]) == (before["val"], before["test"])


def test_the_perplexity_depends_neither_on_batches_nor_on_processes(inside):
    """Sliding windows, which give every character more to its left, on one process and on three."""
    arguments = ["validate", *TINY, "--data.stride=4", "--ckpt_path=run/checkpoints/best.ckpt"]
    assert main([*arguments, "--run_dir=one", "--data.eval_batch_size=1"]) == 0
    assert main([*arguments, "--run_dir=large", "--data.eval_batch_size=50"]) == 0
    status, output = finish(train(*arguments, "--data.eval_batch_size=1", "--trainer.devices=3", "--run_dir=three"))
    assert status == 0, output
    one = results(inside / "one")["val"]
    assert results(inside / "three")["val"] == one
    assert results(inside / "large")["val"] == pytest.approx(one, rel=1e-6)
    assert one["loss"] < results(inside / "run")["val"]["loss"]


def test_prediction_from_the_command_line_and_from_python(inside, model):
    arguments = ["predict", *TINY, *PREDICT, "--ckpt_path=run/checkpoints/best.ckpt", "--run_dir=out"]
    assert main([*arguments, "--data.texts=texts.txt", "--data.eval_batch_size=2"]) == 0
    rows = [json.loads(line) for line in (inside / "out" / "predictions" / "texts.jsonl").read_text().splitlines()]
    texts = (inside / "texts.txt").read_text().splitlines()
    assert [(row["index"], row["text"]) for row in rows] == list(enumerate(texts))
    vectors = np.load(inside / "out" / "predictions" / "embeddings.npz")
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        assert row["generated"].startswith(text) and len(row["generated"]) == len(text) + 8
        score = model.score(text)
        assert row["log_likelihood"] == pytest.approx(score.log_likelihood, rel=1e-5)
        assert row["tokens"] == score.tokens == len(text) - 1
        assert row["perplexity"] == pytest.approx(math.exp(-score.log_likelihood / score.tokens))
        assert row["pieces"] == list(text)
        assert vectors[str(i)].shape == (len(text), 16)
        np.testing.assert_allclose(vectors[str(i)], model.embed(text).vectors, atol=1e-5)


def test_generation_from_python(model):
    text = model.generate("the cat", max_new_tokens=40, temperature=0)
    assert text == model.generate("the cat", max_new_tokens=40, temperature=0, use_cache=False)
    assert text.startswith("the cat ") and len(text) == 47
    drawn = model.generate(["the ", "a "], seed=1)
    assert drawn == model.generate(["the ", "a "], seed=1) != model.generate(["the ", "a "], seed=2)
    assert model.score("the dog sees a tree.").perplexity < model.score("ssss egdo tathe .eer").perplexity
    with pytest.raises(UserError, match="prompt is empty"):
        model.generate("")
    with pytest.raises(UserError, match="'Z' does not occur"):
        model.generate("Z")


def test_weights_start_another_training(inside, capsys):
    start = ["--model.weights=run/checkpoints/best.ckpt", "--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    assert main([*TINY, *start, "--run_dir=again", "--model.optimizer.lr=0"]) == 0
    assert results(inside / "again")["val"] == results(inside / "run")["val"]
    assert main([*TINY, *start, "--run_dir=other", "--data.min_count=2", "--data.vocabulary=10"]) == 2
    assert "another tokeniser: take theirs by --data.tokenizer" in capsys.readouterr().err


def test_gpt2_trains_out_of_the_box_and_at_its_published_size(inside, capsys):
    gpt2 = str(ROOT / "configs" / "gpt2.yaml")
    small = ["--trainer.fast_dev_run=1", "--data.batch_size=2", "--data.eval_batch_size=2", "--trainer.accelerator=cpu"]
    assert main(["--config", gpt2, *small]) == 0
    capsys.readouterr()
    recipe = str(ROOT / "configs" / "recipes" / "gpt2_124m.yaml")
    with pytest.raises(SystemExit):
        main(["--config", gpt2, "--config", recipe, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        network = GPT(vocab_size=50257, **config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 124_439_808
    assert network.context_length == 1024


def test_a_corpus_without_validation(inside):
    (inside / "alone.yaml").write_text("data: {init_args: {corpus: {init_args: {val: null, test: null}}}}")
    assert main([*TINY, *FIT, "--config=alone.yaml", "--run_dir=alone"]) == 0
    assert last_checkpoint(inside / "alone").name == "last-00000060.ckpt"


def test_mistakes_are_sentences(inside, capsys):
    for arguments, message in (
        (["predict", *TINY, "--ckpt_path=run/checkpoints/best.ckpt", "--run_dir=x"], "--data.texts"),
        ([*TINY, *FIT, "--data.context=32", "--run_dir=y"], "rows of 32 tokens do not fit context_length 16"),
        ([*TINY, *FIT, "--model.network.size=gpt9", "--run_dir=z"], "no GPT of size 'gpt9'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_killed_and_resumed_ends_bit_identical(inside):
    training = [
        *TINY, "--trainer.max_steps=30", "--trainer.val_check_interval=15", "--data.num_workers=0",
        "--last_checkpoint.every_n_train_steps=10", "--trainer.logger=callbacks.loggers.AppendingCSVLogger",
    ]  # fmt: skip
    kill = ["--trainer.callbacks+=tests.helpers.SignalAt", "--trainer.callbacks.batch=27"]
    whole, killed = train(*training, "--run_dir=whole"), train(*training, "--run_dir=killed", *kill)
    status, output = finish(killed)
    assert status == -signal.SIGKILL, output
    assert last_checkpoint(inside / "killed").name == "last-00000020.ckpt"
    assert main([*training, "--run_dir=killed", "--ckpt_path=last"]) == 0
    status, output = finish(whole)
    assert status == 0, output
    a, b = (torch.load(last_checkpoint(inside / run), weights_only=True) for run in ("whole", "killed"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "random_states"):
        assert_equal(a[key], b[key], key)
    assert results(inside / "whole")["test"] == results(inside / "killed")["test"]
