import json
import pickle

import numpy as np
import pytest
import torch

from datamodules.text import CausalTextData, PythonTopics
from datamodules.text.making import from_state
from datamodules.text.windows import IGNORE, TrackBatches, Tracks, Windows
from errors import UserError
from tests.datamodules.text.builders import attached, files

TEXT = "the quick brown fox jumps over the lazy dog\nand runs away\n\n" * 7


def data(folder, text=TEXT, **options):
    corpus = files(folder, train=text, val=text[:200], test=text[:77])
    usual = {"tokenizer": "characters", "context": 8, "batch_size": 3}
    return CausalTextData(corpus=corpus, **usual | options)


def scored(dataset, indices=None):
    """The targets of a dataset that count, in the order of the samples."""
    rows = [dataset[0, i]["targets"] for i in (range(len(dataset)) if indices is None else indices)]
    return [t for row in rows for t in row.tolist() if t != IGNORE]


@pytest.mark.parametrize("context", [1, 7, 8, 50, 300])
@pytest.mark.parametrize("share", [1, 3, None])
def test_windows_score_every_token_but_the_first_once(context, share):
    ids = np.arange(100)
    stride = max(context // share, 1) if share else 1
    assert scored(Windows(ids, context=context, stride=stride)) == list(range(1, 100))


def test_sliding_windows_look_back():
    windows = Windows(np.arange(12), context=6, stride=2)
    assert len(windows) == 4
    first, second, last = windows[0, 0], windows[0, 1], windows[0, 3]
    assert first["input_ids"].tolist() == [0, 1, 2, 3, 4, 5]
    assert first["targets"].tolist() == [1, 2, 3, 4, 5, 6]
    assert second["input_ids"].tolist() == [2, 3, 4, 5, 6, 7]
    assert second["targets"].tolist() == [IGNORE] * 4 + [7, 8]
    assert last["input_ids"].tolist() == [6, 7, 8, 9, 10, 0]
    assert last["targets"].tolist() == [IGNORE] * 4 + [11, IGNORE]


def test_random_windows_are_anywhere_and_depend_on_epoch_and_index_only():
    windows = Windows(np.arange(1000), context=10, stride=10, random=True, seed=3)
    assert len(windows) == 99
    starts = {(e, i): windows[e, i]["input_ids"][0].item() for e in range(20) for i in range(99)}
    assert min(starts.values()) < 5
    assert max(starts.values()) in range(985, 990)
    assert len({start % 10 for start in starts.values()}) == 10
    again = Windows(np.arange(1000), context=10, stride=10, random=True, seed=3)
    assert again[7, 5]["input_ids"][0].item() == starts[7, 5]
    row = windows[7, 5]
    assert (row["targets"] - row["input_ids"]).unique().tolist() == [1]


@pytest.mark.parametrize("tracks", [1, 2, 5, 60, 130])
def test_tracks_of_evaluation_score_every_token_but_the_first_once(tracks):
    dataset = Tracks(np.arange(100), context=7, tracks=tracks, training=False)
    by_track = [step * tracks + track for track in range(tracks) for step in range(dataset.steps)]
    assert scored(dataset, by_track) == list(range(1, 100))


def test_tracks_go_on_from_step_to_step():
    dataset = Tracks(np.arange(100), context=7, tracks=3, training=True)
    assert (dataset.steps, len(dataset)) == (4, 12)
    for track in range(3):
        rows = [dataset[0, step * 3 + track] for step in range(4)]
        assert [row["fresh"] for row in rows] == [True, False, False, False]
        inputs = torch.cat([row["input_ids"] for row in rows])
        assert inputs.tolist() == list(range(track * 28, track * 28 + 28))
        assert torch.cat([row["targets"] for row in rows]).tolist() == (inputs + 1).tolist()


def test_tracks_begin_elsewhere_each_epoch():
    dataset = Tracks(np.arange(100), context=7, tracks=3, training=True, shift=True, seed=1)
    starts = {dataset[epoch, 0]["input_ids"][0].item() for epoch in range(60)}
    assert starts == set(range(7))
    assert all(dataset[e, i]["targets"].min() >= 0 for e in range(20) for i in range(len(dataset)))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
def test_evaluation_of_tracks_over_processes(world, batch_size):
    dataset = Tracks(np.arange(200), context=9, tracks=5, training=False)
    seen = set()
    for rank in range(world):
        before = None
        for keys in TrackBatches(dataset, batch_size=batch_size, rank=rank, world=world):
            indices = [index for _, index in keys]
            if before is not None:
                assert len(indices) == len(before)
            goes_on = not dataset[0, indices[0]]["fresh"]
            if goes_on:
                assert indices == [index + 5 for index in before]
            else:
                assert all(dataset[0, index]["fresh"] for index in indices)
            before = indices
            seen.update(indices)
        assert len(TrackBatches(dataset, batch_size=batch_size, rank=rank, world=world)) >= dataset.steps
    assert seen == set(range(len(dataset)))


def test_a_process_without_a_track_reads_one_that_another_reads():
    dataset = Tracks(np.arange(50), context=9, tracks=2, training=False)
    keys = list(TrackBatches(dataset, batch_size=4, rank=2, world=3))
    assert [key for (key,) in keys] == [(0, step * 2) for step in range(dataset.steps)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_of_training_go_on_on_every_process(tmp_path, world):
    rows = {}
    for rank in range(world):
        module = attached(data(tmp_path, stateful=True, batch_size=2), global_rank=rank, world_size=world)
        batches = list(module.train_dataloader())
        assert len(batches) == len(module.train_dataloader())
        stream = module.stream("train")
        for k, batch in enumerate(batches):
            assert batch["fresh"].tolist() == [k == 0] * 2
            assert batch["input_ids"].shape == (2, 8)
        for b in range(2):
            rows[rank, b] = torch.cat([batch["input_ids"][b] for batch in batches]).tolist()
            assert "".join(map(chr, rows[rank, b])) in "".join(map(chr, stream[:].tolist()))
    assert len({tuple(row) for row in rows.values()}) == 2 * world


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumption_within_an_epoch(tmp_path, stateful, workers):
    module = data(tmp_path, stateful=stateful)
    whole = [b for loader in [module.train_dataloader()] for _ in range(2) for b in loader]
    first = data(tmp_path, stateful=stateful, num_workers=workers).train_dataloader()
    taken = [next(batches) for batches in [iter(first)] for _ in range(4)]
    resumed = data(tmp_path, stateful=stateful, num_workers=2 - workers).train_dataloader()
    resumed.load_state_dict(first.state_dict())
    taken += [batch for _ in range(2) for batch in resumed]
    assert len(taken) == len(whole)
    for a, b in zip(taken, whole, strict=True):
        assert a.keys() == b.keys() == {"input_ids", "targets", "index", "fresh"}
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"stateful": True, "eval_tracks": 3}])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_token_once(tmp_path, options, world):
    targets = {}
    for rank in range(world):
        module = attached(data(tmp_path, eval_batch_size=2, **options), global_rank=rank, world_size=world)
        for batch in module.val_dataloader():
            for index, row in zip(batch["index"].tolist(), batch["targets"], strict=True):
                kept = row[row != IGNORE].tolist()
                assert targets.setdefault(index, kept) == kept
    assert sorted(targets) == list(range(module.size("val")))
    expected = module.tokenizer.encode(TEXT[:200])[1:].tolist()
    assert sorted(t for row in targets.values() for t in row) == sorted(expected)


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "words", "bpe"])
def test_counts_and_whole_text(tmp_path, tokenizer):
    text = "één twee \n\n drie één twee drie\nvier één" * 3
    options = {"vocabulary": 270} if tokenizer == "bpe" else {}
    module = CausalTextData(corpus=files(tmp_path, train=text), tokenizer=tokenizer, **options)
    counts = module.counts("train")
    ids = module.stream("train")[:].astype(np.int64)
    assert counts == {
        "tokens": len(ids), "words": len(text.split()), "characters": len(text), "bytes": len(text.encode()),
    }  # fmt: skip
    assert module.units("train") == {unit: counts[unit] for unit in ("words", "characters", "bytes")}
    decoded = module.tokenizer.decode(ids)
    if tokenizer == "words":
        assert decoded.split() == text.split()
        assert counts["tokens"] == len(text.split()) + text.count("\n") + 1
    else:
        assert decoded == text + ("<|endoftext|>" if tokenizer == "bpe" else "")


def test_pieces_of_a_long_text_make_the_same_ids(tmp_path, monkeypatch):
    text = "".join(f"word{i} and  more,\n" + "\n" * (i % 3) for i in range(400))
    module = CausalTextData(corpus=files(tmp_path, train=text), tokenizer="bpe", vocabulary=300)
    monkeypatch.setattr("datamodules.text.corpus.pieces.__defaults__", (50,))
    assert len(list(module.corpus.texts("train"))) > 50
    expected = [*module.tokenizer.encode(text), module.tokenizer.eos]
    assert module.stream("train")[:].tolist() == expected


def test_the_vocabulary_comes_from_training_text_only(tmp_path):
    corpus = files(tmp_path, train="a b\n", val="a zebra\n")
    module = CausalTextData(corpus=corpus, tokenizer="words", context=2)
    assert module.tokenizer.tokens == ["<unk>", "<eos>", "a", "b"]
    assert module.stream("val")[:].tolist() == [2, 0, 1]


def test_text_is_encoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    first = data(tmp_path)
    assert (first.vocab_size, len(first.stream("val"))) == (28, 200)
    print_before = first.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.text.causal.write_stream", None)
        patch.setattr("datamodules.text.making.TokenizerRecipe.train", None)
        again = data(tmp_path)
        assert (again.vocab_size, len(again.stream("val")), again.fingerprint) == (28, 200, print_before)
    (tmp_path / "val.txt").write_text("the dog")
    changed = data(tmp_path, text=TEXT + "!")
    assert changed.vocab_size == 29
    assert changed.fingerprint != print_before


def test_arrays_travel_to_workers_as_names(tmp_path):
    module = data(tmp_path, text=TEXT * 50)
    dataset = module.dataset("train")
    assert len(dataset.ids[:]) == len(TEXT) * 50
    copied = pickle.dumps(dataset)
    assert len(copied) < 2000
    assert torch.equal(pickle.loads(copied)[0, 5]["targets"], dataset[0, 5]["targets"])


def test_constructing_reads_nothing(tmp_path):
    module = CausalTextData(corpus=PythonTopics(str(tmp_path / "none")))
    assert str(module) == "CausalTextData python_topics"
    assert module.splits == ["train", "val", "test"]
    assert not (tmp_path / "none").exists()


def test_what_the_data_says_of_itself(tmp_path):
    module = data(tmp_path)
    said = json.loads(json.dumps(module.description()))
    assert (said["task"], said["name"], len(said["fingerprint"])) == ("language", "text", 16)
    assert from_state(said["tokenizer"]).encode("the fox").tolist() == module.tokenizer.encode("the fox").tolist()


def test_overfitting_repeats_the_same_batches(tmp_path):
    module = attached(data(tmp_path), overfit_batches=2, limit_train_batches=2)
    loader = module.train_dataloader()
    first, second = [list(loader), list(loader)]
    assert len(first) == 2
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))


def test_texts_to_predict_on(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\n two\nthree\n")
    module = data(tmp_path, texts=str(tmp_path / "prompts.txt"), eval_batch_size=2)
    batches = list(module.predict_dataloader())
    assert [batch["texts"] for batch in batches] == [["one", "two"], ["three"]]
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]
    with pytest.raises(UserError, match="name a text file, one text a line"):
        data(tmp_path).predict_dataloader()


def test_bad_options(tmp_path):
    for options, message in [
        ({"context": 0}, "data.context is 0"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"num_workers": -1}, "data.num_workers is -1"),
        ({"stride": 9}, "data.stride is 9; above data.context 8"),
        ({"eval_tracks": 0}, "data.eval_tracks is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            data(tmp_path, **options)
    with pytest.raises(UserError, match=r"do not fill a single window of data\.context 1000"):
        data(tmp_path, context=1000).train_dataloader()
    with pytest.raises(UserError, match="do not fill 3 tracks"):
        data(tmp_path, context=1000, stateful=True).train_dataloader()
    with pytest.raises(UserError, match="has no test split; it has train"):
        CausalTextData(corpus=files(tmp_path)).dataset("test")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: tokens cannot be kept there .*--data\.cache"):
        data(tmp_path, cache=str(tmp_path / "file")).vocab_size  # noqa: B018
