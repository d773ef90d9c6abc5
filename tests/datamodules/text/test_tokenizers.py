import json

import numpy as np
import pytest
import torch

from datamodules.text.making import TokenizerRecipe, from_state, save
from datamodules.text.tokenizers import Bytes, Characters, Words
from errors import UserError

BERT = ("pad", "unk", "cls", "sep", "mask")
TEXT = "The cat saw the dog. The dog didn't see the cat!\nNo cat sees dogs.\n"


def trained(kind, text=TEXT, **options):
    return TokenizerRecipe(kind, **options).train([text])


def test_characters_follow_code_points():
    tokenizer = trained("characters", "hello\n")
    assert tokenizer.tokens == ["\n", "e", "h", "l", "o"]
    assert tokenizer.encode("hole\n").tolist() == [2, 4, 3, 1, 0]
    assert tokenizer.encode("").dtype == np.int64
    assert tokenizer.decode([2, 1, 3, 3, 4]) == "hello"
    with pytest.raises(UserError, match=r"character 'x' does not occur in the training text; .*min_count 2"):
        tokenizer.encode("ex")


def test_rare_characters_are_unknown():
    tokenizer = trained("characters", "aabbc𝄞한", min_count=2)
    assert tokenizer.tokens == ["<unk>", "a", "b"]
    assert tokenizer.encode("abcz𝄞").tolist() == [1, 2, 0, 0, 0]
    assert trained("characters", "aaabbc", vocabulary=3).tokens == ["<unk>", "a", "b"]


def test_bytes():
    tokenizer = trained("bytes", specials=("eos",))
    assert tokenizer.encode("aé한").tolist() == list("aé한".encode())
    assert tokenizer.decode(tokenizer.encode("aé한")) == "aé한"
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.decode([97, 256])) == (257, 256, "a<eos>")


def test_words_by_frequency_with_ends_of_lines():
    tokenizer = trained("words", "b a b\nc a <unk> b\n")
    assert tokenizer.tokens == ["<unk>", "<eos>", "b", "a", "c"]
    assert tokenizer.encode("a z\n\n <unk> b").tolist() == [3, 0, 1, 1, 0, 2]
    assert tokenizer.decode([3, 2, 1, 4]) == "a b\nc"
    assert trained("words", "b a b c", vocabulary=3).tokens == ["<unk>", "<eos>", "b"]
    assert trained("words", "b a b c", min_count=2).tokens == ["<unk>", "<eos>", "b"]


def test_words_apart_from_punctuation():
    tokenizer = trained("words", split_punctuation=True, lowercase=True)
    assert tokenizer.split("The dog's (tail).") == ["the", "dog", "'", "s", "(", "tail", ")", "."]
    assert tokenizer.tokens[2] == "the"


def test_bpe_gives_back_every_text():
    tokenizer = trained("bpe", vocabulary=280, specials=("eos",))
    assert tokenizer.vocab_size == 280
    for text in (TEXT, "  two  blanks \n\n\tété 한국어 𝄞\r\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokens[tokenizer.eos] == "<|endoftext|>"
    assert len(tokenizer.encode("The cat")) < 7
    words = tokenizer.encode(" cat dog")
    assert not tokenizer.continues[words[0]]
    assert tokenizer.continues[tokenizer.encode("a")[0]]


def test_wordpiece_normalises_as_bert():
    tokenizer = trained("wordpiece", vocabulary=80, lowercase=True, specials=BERT)
    assert [tokenizer.specials[role] for role in BERT] == [0, 1, 2, 3, 4]
    assert tokenizer.tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    same = [tokenizer.encode(text).tolist() for text in ("The CAT!", "thé cat !", " the\x00 cat\t! ")]
    assert same[0] == same[1] == same[2]
    assert tokenizer.decode(tokenizer.encode("The cat sees")) == "the cat sees"
    assert tokenizer.encode("中a").tolist() == [tokenizer.unk, tokenizer.encode("a")[0]]  # a word of its own
    assert tokenizer.encode("c" * 201).tolist() == [tokenizer.unk]
    pieces = tokenizer.encode("didn't dogs")
    assert [tokenizer.tokens[i].startswith("##") for i in pieces] == tokenizer.continues[pieces].tolist()
    assert not tokenizer.continues[:5].any()


def test_wordpiece_that_keeps_case_keeps_korean_syllables_whole():
    kept = trained("wordpiece", "정말 좋다", vocabulary=40, specials=BERT)
    assert kept.decode(kept.encode("정말 좋다")) == "정말 좋다"
    taken_apart = trained("wordpiece", "정말 좋다", vocabulary=60, specials=BERT, lowercase=True)
    assert "정" not in "".join(taken_apart.tokens)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_is_repeatable(kind):
    text = " ".join(f"{a}{b}" for a in ("un", "re", "pre", "") for b in ("do", "work", "make", "form", "view"))
    first = trained(kind, text, vocabulary=290, specials=BERT)
    assert first.tokens == trained(kind, text, vocabulary=290, specials=BERT).tokens


@pytest.mark.parametrize("kind", ["characters", "bytes", "words", "bpe", "wordpiece"])
def test_states_are_json_and_files(tmp_path, kind):
    tokenizer = trained(kind, specials=BERT, **({"vocabulary": 300} if kind in ("bpe", "wordpiece") else {}))
    again = from_state(json.loads(json.dumps(tokenizer.state())))
    save(tokenizer, tmp_path / "tokenizer.json")
    read = TokenizerRecipe(str(tmp_path / "tokenizer.json")).load()
    torch.save({"triptych": {"data": {"tokenizer": tokenizer.state()}}}, tmp_path / "a.ckpt")
    kept = TokenizerRecipe(str(tmp_path / "a.ckpt")).load()
    for other in (again, read, kept):
        assert (other.tokens, other.specials) == (tokenizer.tokens, tokenizer.specials)
        assert other.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    batch = tokenizer.encode_batch([TEXT, "cat"])
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(t).tolist() for t in (TEXT, "cat")]
    assert set(BERT) <= set(tokenizer.specials)


def test_published_vocabularies(tmp_path):
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##s", "é"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    uncased = TokenizerRecipe(str(tmp_path / "vocab.txt"), lowercase=True).load()
    assert uncased.tokens == pieces
    assert uncased.encode("DOGS é").tolist() == [6, 7, 2]  # without its accent, e is not in the vocabulary
    assert TokenizerRecipe(str(tmp_path / "vocab.txt")).load().encode("dogs é").tolist() == [6, 7, 8]
    assert (uncased.pad, uncased.unk, uncased.cls, uncased.sep, uncased.mask, uncased.eos) == (0, 2, 3, 4, 5, None)
    engine = uncased.state()["engine"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(engine))
    assert TokenizerRecipe(str(tmp_path / "tokenizer.json")).load().tokens == pieces


def test_bad_options(tmp_path):
    for options, message in [
        ({"tokenizer": "bytes", "vocabulary": 3}, "data.vocabulary means nothing to data.tokenizer bytes"),
        ({"tokenizer": "bpe", "lowercase": True}, "data.lowercase means nothing"),
        ({"tokenizer": "words", "vocabulary": 0}, "data.vocabulary is 0"),
        ({"tokenizer": "words", "min_count": 0}, "data.min_count is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            TokenizerRecipe(**options)
    with pytest.raises(UserError, match="neither one of characters, bytes, words, bpe, wordpiece nor a file"):
        TokenizerRecipe("wordpeice").load()
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json: holds no tokeniser"):
        TokenizerRecipe(str(tmp_path / "broken.json")).load()
    with pytest.raises(UserError, match="special tokens and alphabet alone are"):
        trained("bpe", vocabulary=100)


def test_roles_that_are_not_there_are_none():
    assert Characters("ab").unk is None
    assert Bytes().eos is None
    words = Words(["a"], {"unk": "<unk>"})
    assert words.encode("a\nb").tolist() == [1, 0]  # without eos a line's end is white space
    assert not words.continues.any()
