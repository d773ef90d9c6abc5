"""Masked text as a data module: batches, determinism, evaluation, options."""

import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers.models import WordLevel

from datamodules.text import MaskedTextData, PythonTopics
from datamodules.text.tokenizers import Bytes, Characters, Words
from errors import UserError
from tests.datamodules.text.builders import attached, files

TEXT = "\n".join(f"the {n} cats sit on mat {n}\nand the dogs run after them again\n" for n in range(200))


def data(folder, **changes):
    corpus = files(folder, TEXT.replace("them again\n", "them again\n" * 2), val=TEXT[:2000])
    options = {"tokenizer": "words", "context": 24, "batch_size": 8, "vocabulary": 60} | changes
    return attached(MaskedTextData(corpus=corpus, **options))


def epoch(module, number=0):
    module.trainer.current_epoch = number
    return list(module.train_dataloader())


def restored(batch):
    """The tokens before masking."""
    ids, counted = batch["input_ids"].clone(), batch["masked_labels"] != -100
    rows = torch.arange(len(ids))[:, None].expand_as(counted)
    ids[rows[counted], batch["masked_positions"][counted]] = batch["masked_labels"][counted]
    return ids


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def test_batches(tmp_path):
    module = data(tmp_path)
    tokenizer = module.tokenizer
    pad, cls, sep = (tokenizer.specials[role] for role in ("pad", "cls", "sep"))
    hidden = []
    for batch in epoch(module):
        ids, mask = restored(batch), batch["attention_mask"]
        assert ids.shape == mask.shape == batch["token_type_ids"].shape
        assert ids.shape[1] == mask.sum(1).max() <= 24
        assert ((ids == pad) == ~mask).all()
        assert (ids[:, 0] == cls).all() and ((ids == sep).sum(1) == 2).all()
        counted = batch["masked_labels"] != -100
        lengths = mask.sum(1)
        assert counted.sum(1).tolist() == [max(1, round(0.15 * n)) for n in lengths.tolist()]
        assert (batch["masked_positions"] < lengths[:, None])[counted].all()
        assert not batch["masked_positions"][~counted].any()
        assert not torch.isin(batch["masked_labels"][counted], torch.tensor([pad, cls, sep])).any()
        assert set(batch["next_sentence_label"].tolist()) <= {0, 1}
        assert (batch["input_ids"][~mask] == pad).all()
        second = (ids == sep).int().argmax(1)  # where the first [SEP] is
        place = torch.arange(ids.shape[1])
        assert torch.equal(batch["token_type_ids"].bool(), (place > second[:, None]) & mask)
        assert not (ids == tokenizer.specials["mask"]).any()
        hidden += batch["input_ids"].gather(1, batch["masked_positions"])[counted].tolist()
    assert hidden.count(tokenizer.specials["mask"]) / len(hidden) == pytest.approx(0.8, abs=0.07)


def test_same_masks_with_workers_and_without(tmp_path):
    assert same(epoch(data(tmp_path), 1), epoch(data(tmp_path, num_workers=2), 1))


def test_dynamic_and_static_masks(tmp_path):
    def by_index(batches):
        return {
            int(i): (ids[mask].tolist(), labels[labels != -100].tolist())
            for b in batches
            for i, ids, mask, labels in zip(
                b["index"], b["input_ids"], b["attention_mask"], b["masked_labels"], strict=True
            )
        }

    dynamic, static = data(tmp_path), data(tmp_path, masks="static")
    first, second = by_index(epoch(dynamic, 0)), by_index(epoch(dynamic, 1))
    common = first.keys() & second.keys()
    assert common and sum(first[i] == second[i] for i in common) < len(common) / 5
    first, second = by_index(epoch(static, 0)), by_index(epoch(static, 1))
    assert all(first[i] == second[i] for i in first.keys() & second.keys())
    # Each pass has masks and pairs of its own.
    once, thrice = static.size("train"), len(data(tmp_path, masks="static", passes=3)._dataset("train", True))
    assert thrice == pytest.approx(3 * once, rel=0.2)


def test_seed_changes_training_but_not_evaluation(tmp_path):
    one, two = data(tmp_path, seed=1), data(tmp_path, seed=2, passes=2, masks="static")
    assert not same(epoch(one), epoch(two))
    assert same(list(one.val_dataloader()), list(two.val_dataloader()))


def test_masked_words_only(tmp_path):
    module = data(tmp_path, rows="full_sentences", whole_words=False)
    batch = epoch(module)[0]
    assert "next_sentence_label" not in batch
    assert not batch["token_type_ids"].any()


def test_whole_words_of_subwords(tmp_path):
    for tokenizer in ("wordpiece", "bpe"):
        module = data(tmp_path, tokenizer=tokenizer, vocabulary=300 if tokenizer == "bpe" else 45, whole_words=True)
        continues = torch.from_numpy(module.tokenizer.continues)
        assert continues.any()
        for batch in epoch(module):
            for whole, labels, places in zip(
                restored(batch), batch["masked_labels"], batch["masked_positions"], strict=True
            ):
                chosen = torch.zeros(len(whole), dtype=torch.bool)
                chosen[places[labels != -100]] = True
                if tokenizer == "wordpiece":  # where a word begins, its pieces alone say
                    goes_on = continues[whole]
                    goes_on[1:] &= whole[:-1] != module.tokenizer.sep
                    goes_on[1] = False
                    assert torch.equal(chosen[1:][goes_on[1:]], chosen[:-1][goes_on[1:]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 4}, "at least 5 tokens"),
        ({"masked_share": 1.5}, "data.masked_share is 1.5"),
        ({"short_share": -1}, "data.short_share is -1"),
        ({"passes": 0}, "data.passes is 0"),
        ({"max_masked": 0}, "data.max_masked is 0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        MaskedTextData(**options)


def test_whole_words_need_a_tokeniser_that_knows_them(tmp_path):
    roles = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats"]
    Engine(WordLevel({word: i for i, word in enumerate(roles)}, "[UNK]")).save(str(tmp_path / "made.json"))
    with pytest.raises(UserError, match=r"tokeniser .*made.json does not say where words begin"):
        epoch(data(tmp_path, tokenizer=str(tmp_path / "made.json"), vocabulary=None, whole_words=True))


def test_where_words_go_on():
    characters = Characters("ab ", ["mask"])
    assert {token for token, on in zip(characters.tokens, characters.continues, strict=True) if on} == {"a", "b"}
    in_bytes = Bytes(["mask"])
    assert [bool(in_bytes.continues[code]) for code in (*b"a \n\xff", 256)] == [True, False, False, True, False]
    words = Words(["so", "on"], {"unk": "<unk>"})
    assert not words.continues.any() and len(words.continues) == 3


def test_the_sample_corpus_asks_both_questions(tmp_path):
    module = attached(MaskedTextData(corpus=PythonTopics(str(tmp_path)), tokenizer="words", vocabulary=500))
    labels = torch.cat([batch["next_sentence_label"] for batch in module.val_dataloader()])
    assert 0.4 < labels.float().mean() < 0.7
