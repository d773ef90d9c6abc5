import pickle

import numpy as np
import pytest
import torch

from datamodules.text import ElmoTextData
from datamodules.text.elmo_characters import sentence_characters, word_characters
from datamodules.text.elmo_sentences import SentenceTracks
from datamodules.text.windows import IGNORE
from errors import UserError
from tests.datamodules.text.builders import attached, files

TEXT = "".join(f"w{i % 7} w{i % 3} x{i}\n" + ("and more of it .\n\n" if i % 4 == 0 else "") for i in range(40))
FORWARD, BACKWARD = ("words", "targets"), ("backward_words", "backward_targets")


def data(folder, text=TEXT, **options):
    corpus = files(folder, train=text, val=text[:250], test="w0 novel\n")
    return ElmoTextData(corpus=corpus, **{"context": 6, "batch_size": 3} | options)


def spelling(row):
    """What 50 character ids stand for."""
    inner = [i for i in row.tolist() if i not in (259, 260, 261)]
    return {(257,): "<S>", (258,): "</S>"}.get(tuple(inner)) or bytes(i - 1 for i in inner).decode()


def read(batch, tokenizer, direction):
    """Per row what is read, and what is to be predicted (None where nothing is)."""
    words, targets = direction
    inputs = [[spelling(batch["characters"][i]) for i in row] for row in batch[words]]
    wanted = [[None if i == IGNORE else tokenizer.tokens[i] for i in row.tolist()] for row in batch[targets]]
    return inputs, wanted


def test_characters_of_words():
    rows = word_characters(["a", "한", "x" * 100, "é" * 24 + "z", ""])
    assert rows.shape == (5, 50) and rows.dtype == np.int64
    assert rows[0].tolist() == [259, 98, 260] + [261] * 47
    assert rows[1].tolist() == [259, 0xED + 1, 0x95 + 1, 0x9C + 1, 260] + [261] * 45
    assert rows[2].tolist() == [259] + [121] * 48 + [260]
    assert rows[3].tolist() == [259] + [0xC3 + 1, 0xA9 + 1] * 24 + [260]  # 48 bytes and no more
    assert rows[4].tolist() == [259, 260] + [261] * 48
    batch = sentence_characters([["a"], ["b", "c"]])
    assert batch.shape == (2, 2, 50) and not batch[0, 1].any()
    assert batch[1, 1, :3].tolist() == [259, 100, 260]


def test_sentences_in_both_directions(tmp_path):
    module = data(tmp_path, "a b c\n\nd e\nb b\n", shuffle=False, batch_size=1, context=5)
    batches = list(module.train_dataloader())
    assert [batch["fresh"].tolist() for batch in batches] == [[True], [False]]
    assert [len(batch["characters"]) for batch in batches] == [5, 5]  # every word that is read, once
    found = {way: [read(batch, module.tokenizer, way) for batch in batches] for way in (FORWARD, BACKWARD)}
    (first, second) = found[FORWARD]
    assert first == ([["<S>", "a", "b", "c", "<S>"]], [["a", "b", "c", "<eos>", "d"]])
    assert second == ([["d", "e", "<S>", "b", "b"]], [["e", "<eos>", "b", "b", "<eos>"]])
    (first, second) = found[BACKWARD]
    assert first == ([["</S>", "c", "b", "a", "</S>"]], [["c", "b", "a", "<cls>", "e"]])
    assert second == ([["e", "d", "</S>", "b", "b"]], [["d", "<cls>", "b", "b", "<cls>"]])


def test_vocabulary_is_of_training_by_frequency_and_characters_are_of_any_word(tmp_path):
    module = data(tmp_path, min_count=2, eval_tracks=1)
    tokens = module.tokenizer.tokens
    assert tokens[:5] == ["<unk>", "<cls>", "<eos>", "w0", "w1"]  # w0 20 times, w1 19
    counts = [TEXT.split().count(token) for token in tokens[3:]]
    assert counts == sorted(counts, reverse=True) and "x17" not in tokens
    batch = next(iter(module.test_dataloader()))
    inputs, wanted = read(batch, module.tokenizer, FORWARD)
    assert inputs[0][:3] == ["<S>", "w0", "novel"] and wanted[0][:4] == ["w0", "<unk>", "<eos>", None]


@pytest.mark.parametrize("tracks", [1, 2, 5, 40, 90])
def test_evaluation_predicts_every_word_once(tmp_path, tracks):
    module = data(tmp_path)
    sentences = module.sentences("train")
    dataset = SentenceTracks(sentences, context=6, tracks=tracks, training=False)
    whole = [module.tokenizer.encode(line) for line in TEXT.split("\n") if line]
    assert sentences.steps == sum(len(line) + 1 for line in whole)
    samples = [dataset[0, s * tracks + t] for t in range(tracks) for s in range(dataset.steps)]
    ahead, back = ([i for sample in samples for i in sample["targets"][d] if i != IGNORE] for d in (0, 1))
    assert ahead == [i for line in whole for i in [*line, module.tokenizer.eos]]
    assert back == [i for line in whole for i in [*line[::-1], module.tokenizer.cls]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_over_processes_sees_every_sample(tmp_path, world):
    seen = {}
    for rank in range(world):
        module = attached(data(tmp_path, eval_tracks=4, eval_batch_size=3), global_rank=rank, world_size=world)
        for batch in module.val_dataloader():
            for index, targets in zip(batch["index"].tolist(), batch["targets"].tolist(), strict=True):
                assert seen.setdefault(index, targets) == targets
    assert sorted(seen) == list(range(module.size("val")))
    assert sum(t != IGNORE for targets in seen.values() for t in targets) == module.counts("val")["tokens"]


@pytest.mark.parametrize("world", [1, 2])
def test_rows_of_training_go_on_and_begin_with_sentences(tmp_path, world):
    rows = {}
    for rank in range(world):
        module = attached(data(tmp_path, batch_size=2), global_rank=rank, world_size=world)
        for k, batch in enumerate(module.train_dataloader()):
            assert batch["fresh"].tolist() == [k == 0] * 2
            for direction in (FORWARD, BACKWARD):
                inputs, wanted = read(batch, module.tokenizer, direction)
                for b in range(2):
                    rows.setdefault((rank, b, direction), []).extend(zip(inputs[b], wanted[b], strict=True))
    lines = {tuple(line.split()) for line in TEXT.split("\n") if line}
    for (_, _, direction), steps in rows.items():
        begin, end = ("<S>", "<eos>") if direction == FORWARD else ("</S>", "<cls>")
        assert steps[0][0] == begin
        sentence = []
        for read_word, wanted in steps:
            assert read_word == (sentence[-1] if sentence else begin)
            if wanted == end:
                assert tuple(sentence if direction == FORWARD else sentence[::-1]) in lines
                sentence = []
            else:
                sentence.append(wanted)
    assert len({tuple(steps[:6]) for steps in rows.values()}) == 4 * world


def test_order_depends_on_seed_and_epoch_only(tmp_path):
    module = data(tmp_path, seed=1)
    sentences = module.sentences("train")
    options = {"context": 6, "tracks": 3, "training": True, "shuffle": True}
    one, two = (SentenceTracks(sentences, **options, seed=1) for _ in range(2))
    keys = [(epoch, index) for epoch in (0, 3) for index in range(len(one))]
    apart = {key: two[key]["forms"] for key in reversed(keys)}
    assert all(np.array_equal(one[key]["forms"], apart[key]) for key in keys)
    assert not np.array_equal(one[0, 0]["forms"], one[3, 0]["forms"])
    assert not np.array_equal(one[0, 0]["forms"], SentenceTracks(sentences, **options, seed=2)[0, 0]["forms"])
    told = [[one[epoch, i]["targets"][0] for i in range(len(one))] for epoch in range(30)]
    everything = set(np.concatenate([np.concatenate(epoch) for epoch in told]).tolist())
    assert everything >= set(range(3, module.vocab_size))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumption_within_an_epoch(tmp_path, workers):
    loader = data(tmp_path).train_dataloader()
    whole = [batch for _ in range(2) for batch in loader]
    first = data(tmp_path, num_workers=workers).train_dataloader()
    taken = [next(batches) for batches in [iter(first)] for _ in range(3)]
    resumed = data(tmp_path).train_dataloader()
    resumed.load_state_dict(first.state_dict())
    taken += [batch for _ in range(2) for batch in resumed]
    assert len(taken) == len(whole)
    for a, b in zip(taken, whole, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_sentences_are_encoded_once_and_travel_as_names(tmp_path, monkeypatch):
    before = data(tmp_path, TEXT * 30).sentences("train").steps
    monkeypatch.setattr("datamodules.text.elmo.write_sentences", None)
    module = data(tmp_path, TEXT * 30)
    assert module.sentences("train").steps == before
    dataset = module._dataset("train", training=True)
    expected = dataset[0, 2]["forms"]
    copied = pickle.dumps(dataset)
    assert len(copied) < 3000
    assert np.array_equal(pickle.loads(copied)[0, 2]["forms"], expected)


def test_bad_options(tmp_path):
    with pytest.raises(UserError, match=r"data\.context is 0"):
        data(tmp_path, context=0)
    with pytest.raises(UserError, match="do not fill 3 tracks"):
        data(tmp_path, context=1000).train_dataloader()
    with pytest.raises(UserError, match=r"data\.tokenizer bpe makes no words"):
        data(tmp_path, tokenizer="bpe").sentences("train")
    with pytest.raises(UserError, match="do not fill"):
        data(tmp_path, text="\n").train_dataloader()
