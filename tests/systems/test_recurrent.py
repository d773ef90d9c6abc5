"""Recurrent language models through the command line: training, evaluation, several processes, resumption."""

import json
import multiprocessing
import os
import signal
import socket
import sys

import numpy as np
import pytest
import torch

from errors import UserError
from inference import load
from tests.helpers import ROOT, assert_equal, last_checkpoint
from tools import convert_elmo
from train import main

COMMON = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1", "--data.min_count=1",
    "--trainer.logger=callbacks.loggers.AppendingCSVLogger",
    "--data.corpus=datamodules.text.TextFiles", "--data.corpus.root=.", "--data.corpus.train=train.txt",
    "--data.corpus.val=val.txt", "--data.corpus.test=test.txt", "--data.eval_tracks=3", "--data.eval_batch_size=3",
    "--model.schedule.warmup_epochs=0", "--data.batch_size=4", "--data.context=8", "--model.optimizer.lr=0.02",
]  # fmt: skip
SYSTEMS = {
    "lstm_lm": [
        "--model.network.embedding_size=12", "--model.network.cells=16", "--model.network.dropout=0.1",
        "--model.network.hidden_dropout=0.1", "--model.network.input_dropout=0.1", "--model.network.weight_dropout=0.1",
    ],
    "elmo": [
        "--model.network.filters=[[1,4],[2,6]]", "--model.network.cells=16", "--model.network.projection=8",
        "--model.network.samples=6",
    ],
}  # fmt: skip
PERPLEXITIES = {"lstm_lm": ["perplexity"], "elmo": ["perplexity", "forward_perplexity", "backward_perplexity"]}


def arguments(name, *more):
    return ["--config", str(ROOT / "configs" / f"{name}.yaml"), *COMMON, *SYSTEMS[name], *more]


def results(run):
    return json.loads((run / "results.json").read_text())


def start(*words, world=1):
    """`main` on some processes, as torchrun would start them; forked, which saves the seconds of all imports."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    words = [*words, f"--trainer.devices={world}", "--trainer.strategy=ddp"]

    def run(rank):
        os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        sys.exit(main(words))

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def finish(*processes):
    """Their exit statuses: 0, or minus the signal that they died of."""
    for process in processes:
        process.join(200)
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a corpus and a short training of each in a directory of its name."""
    folder = tmp_path_factory.mktemp("recurrent")
    rng = np.random.default_rng(0)
    words = (["the", "a"], ["cat", "dog", "bird"], ["sees", "hears"], ["the", "a"], ["tree", "stone"])
    for split, sentences in {"train": 100, "val": 23, "test": 10}.items():
        lines = [" ".join(rng.choice(choices) for choices in words) + ".\n" for _ in range(sentences)]
        (folder / f"{split}.txt").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in SYSTEMS:
            assert main(arguments(name, "--trainer.max_epochs=3", f"--run_dir={name}")) == 0
    return folder


@pytest.fixture(params=SYSTEMS)
def name(request, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return request.param


def test_training_brings_the_perplexities_down(name, folder):
    rows = (folder / name / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    for perplexity in PERPLEXITIES[name]:
        found = [row.split(",")[header.index(f"val/{perplexity}")] for row in rows[1:]]
        values = [float(value) for value in found if value]
        assert values[0] < 13  # of 13 words and more; after an epoch
        assert values[-1] < 0.8 * values[0]
        assert results(folder / name)["test"][perplexity] < 0.8 * values[0]
    if name == "elmo":
        assert "train/forward_sampled_loss" in header and "train/forward_loss" not in header
        both = results(folder / name)["val"]
        product = both["forward_perplexity"] * both["backward_perplexity"]
        assert both["perplexity"] == pytest.approx(product**0.5, rel=1e-12)
        assert both["loss"] == pytest.approx(np.log(both["perplexity"]), rel=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_perplexity_is_the_same_on_any_number_of_processes(name, folder, tmp_path, world):
    best = str(folder / name / "checkpoints" / "best.ckpt")
    words = arguments(name, f"--run_dir={tmp_path}", "--ckpt_path", best, "--data.eval_batch_size=2")
    assert finish(*start("validate", *words, world=world)) == [0] * world
    before, now = results(folder / name)["val"], results(tmp_path)["val"]
    assert before.keys() == now.keys()
    assert now == pytest.approx(before, rel=1e-6)


def test_killed_and_resumed_training_is_bit_identical(name, folder, tmp_path):
    """Of the weights, the optimiser, the random streams and the recurrent states, of one process and of two."""
    world = {"lstm_lm": 2, "elmo": 1}[name]
    training = arguments(name, "--trainer.max_epochs=1", "--last_checkpoint.every_n_train_steps=3")
    kill = ["--trainer.callbacks+=tests.helpers.SignalAt", "--trainer.callbacks.batch=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(*training, f"--run_dir={whole}", world=world)
    first += start(*training, f"--run_dir={killed}", *kill, world=world)
    assert finish(*first) == [0] * world + [-signal.SIGKILL] * world
    assert last_checkpoint(killed).name == "last-00000003.ckpt"
    assert finish(*start(*training, f"--run_dir={killed}", "--ckpt_path=last", world=world)) == [0] * world
    a, b = (torch.load(last_checkpoint(run), weights_only=True) for run in (whole, killed))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "random_states", "recurrent_states"):
        assert_equal(a[key], b[key], key)
    assert len(a["recurrent_states"]) == world
    assert results(whole)["val"] == results(killed)["val"]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_of_the_checkpoint_equals_the_one_after_fit(name, folder, tmp_path, command):
    best = str(folder / name / "checkpoints" / "best.ckpt")
    assert main([command, *arguments(name, f"--run_dir={tmp_path}", "--ckpt_path", best)]) == 0
    split = "val" if command == "validate" else "test"
    assert results(tmp_path)[split] == results(folder / name)[split]


def test_backward_text_is_learnt_too(folder, tmp_path, monkeypatch):
    """A model of the other direction, on the same words."""
    monkeypatch.chdir(folder)
    more = ("--data.backward=true", "--trainer.max_epochs=1", f"--run_dir={tmp_path}")
    assert main(arguments("lstm_lm", *more)) == 0
    ahead, back = results(folder / "lstm_lm")["val"], results(tmp_path)["val"]
    assert back["perplexity"] < 13 and back["perplexity"] != ahead["perplexity"]


def test_prediction_from_the_command_line_and_from_python(name, folder, tmp_path):
    best = folder / name / "checkpoints" / "best.ckpt"
    (tmp_path / "texts.txt").write_text("the cat sees\na bird hears the unheard stone .\n")
    status = main([
        "predict", *arguments(name, f"--run_dir={tmp_path / 'run'}", "--ckpt_path", str(best)),
        f"--data.texts={tmp_path / 'texts.txt'}", "--model.prediction.embeddings=true",
        "--model.prediction.max_new_tokens=4",
    ])  # fmt: skip
    assert status == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "texts.jsonl").read_text().splitlines()]
    vectors = np.load(tmp_path / "run" / "predictions" / "embeddings.npz")
    assert [line["text"] for line in lines] == ["the cat sees", "a bird hears the unheard stone ."]
    assert [len(line["pieces"]) for line in lines] == [3, 7] == [len(vectors[str(i)]) for i in range(2)]
    model = load(best)
    for line, i in zip(lines, range(2), strict=True):
        assert model.score(line["text"]).log_likelihood == pytest.approx(line["log_likelihood"], rel=1e-5)
        np.testing.assert_allclose(model.embed(line["text"]).vectors, vectors[str(i)], atol=1e-6)
    assert model.score("the cat sees a tree .").perplexity < model.score("tree a sees cat . the").perplexity
    if name == "lstm_lm":
        assert all(line["generated"].startswith(line["text"].replace("unheard", "<unk>")) for line in lines)
    else:
        layers = model.layers(["the cat sees", "a tree"])
        assert [found.shape for found in layers] == [(3, 3, 16), (3, 2, 16)]
        np.testing.assert_allclose(layers[0][-1], vectors["0"], atol=1e-6)


def test_export_and_training_on_from_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    best = str(folder / "elmo" / "checkpoints" / "best.ckpt")
    convert_elmo.main(["export", best, str(tmp_path / "out")])
    options, weights = str(tmp_path / "out" / "options.json"), str(tmp_path / "out" / "weights.hdf5")
    words = (tmp_path / "out" / "vocabulary.txt").read_text().split()
    assert words[:3] == ["<unk>", "<cls>", "<eos>"] and {"cat", "stone"} < set(words)
    capsys.readouterr()
    convert_elmo.main(["configure", options, weights])
    (tmp_path / "published.yaml").write_text(capsys.readouterr().out)
    # The checkpoint's size without naming it: the overlay does.
    sizes = ["--config", str(tmp_path / "published.yaml"), "--model.network.samples=6"]
    config = ["--config", str(ROOT / "configs" / "elmo.yaml")]
    run = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.optimizer.lr=0", "--run_dir=on"]
    assert main([*config, *sizes, *COMMON, *run]) == 0
    one, two = load(best), load(folder / "on" / "checkpoints" / "best.ckpt")
    np.testing.assert_array_equal(one.embed("the cat").vectors, two.embed("the cat").vectors)
    with pytest.raises(UserError, match="holds no ELMo"):
        convert_elmo.export(str(folder / "lstm_lm" / "checkpoints" / "best.ckpt"), tmp_path)
