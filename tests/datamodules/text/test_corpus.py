import json
from itertools import pairwise

import pytest

from datamodules.text import PythonTopics, TextFiles
from datamodules.text.corpus import pieces
from datamodules.text.reading import Source, cells, lines, rows, split_sentences
from datamodules.text.sample import deal, documents, paragraph_lines
from errors import UserError


def whole(corpus, split="train"):
    return "".join(text for text, _ in corpus.texts(split))


def corpus(tmp_path, content, name="train.txt", **options):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextFiles(str(tmp_path), train=name, **options)


def test_documents_and_sentences(tmp_path):
    text = "One.\nTwo.\n\n\n  Three. \r\n\nFour."
    assert list(corpus(tmp_path, text).documents("train")) == [["One.", "Two."], ["Three."], ["Four."]]
    assert list(corpus(tmp_path, text, layout="lines").documents("train")) == [
        ["One."],
        ["Two."],
        ["Three."],
        ["Four."],
    ]
    assert whole(corpus(tmp_path, text)) == text


def test_wikitext_documents_begin_at_headings(tmp_path):
    text = " \n = A b = \n \n Text one . \n = = Part = = \n Text two . \n = C = \n Three . \n"
    read = list(corpus(tmp_path, text, layout="wikitext").documents("train"))
    assert read == [["= A b =", "Text one .", "= = Part = =", "Text two ."], ["= C =", "Three ."]]


def test_sentences_of_running_text():
    assert split_sentences('He said "no." Then? Yes! 3.5 is e.g a number') == [
        'He said "no."', "Then?", "Yes!", "3.5 is e.g a number",
    ]  # fmt: skip
    assert split_sentences("정말 좋다. 또 본다! 최고") == ["정말 좋다.", "또 본다!", "최고"]
    assert split_sentences("一。二\uff1f三") == ["一。", "二\uff1f", "三"]
    assert split_sentences(" ") == []


def test_tables_hold_a_document_a_row(tmp_path):
    jsonl = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(["a\nb", "c"]))
    read = corpus(tmp_path, jsonl, "train.jsonl")
    assert list(read.documents("train")) == [["a", "b"], ["c"]]
    assert list(read.texts("train")) == [("a\nb\n", True), ("c\n", True)]
    tsv = corpus(tmp_path, 'id\tdocument\n1\tsay "hi\n2\tc, d\n', "t.txt", column="document")
    assert list(tsv.documents("train")) == [['say "hi'], ["c, d"]]
    quoted = corpus(tmp_path, 'text,b\n"one, ""two""",3\n', "train.csv")
    assert list(quoted.documents("train")) == [['one, "two"']]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a b", "c"]}), tmp_path / "train.parquet")
    assert list(TextFiles(str(tmp_path), train="train.parquet").documents("train")) == [["a b"], ["c"]]


def test_files_by_folder_pattern_and_list(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("b.txt", "a.txt", "more/c.txt", "more/picture.png"):
        (tmp_path / name).write_text(f"{name}\n")
    assert whole(TextFiles(str(tmp_path), train=".")) == "a.txt\nb.txt\nmore/c.txt\n"
    assert whole(TextFiles(str(tmp_path), train="*.txt")) == "a.txt\nb.txt\n"
    assert whole(TextFiles(str(tmp_path), train=["more", "a.txt"])) == "more/c.txt\na.txt\n"
    assert whole(TextFiles(train=str(tmp_path / "b.txt"))) == "b.txt\n"


def test_held_out_share_is_the_end_of_the_file(tmp_path):
    split = corpus(tmp_path, "abcdefghij" * 10, held_out=0.1)
    assert split.splits == ["train", "val"]
    assert (whole(split), whole(split, "val")) == ("abcdefghij" * 9, "abcdefghij")
    korean = corpus(tmp_path, "가나다라" * 5, held_out=0.35)  # 60 bytes, cut at 39; and within a character:
    assert whole(korean) + whole(korean, "val") == "가나다라" * 5
    within = corpus(tmp_path, "가나다라" * 5, held_out=0.3333)
    assert len(whole(within)) == 14


def test_pieces_end_before_white_space_and_join_to_the_text():
    text = "ab cd\nefgh\n \nij\n" * 20
    cut = list(pieces(text.splitlines(keepends=True), size=10))
    assert "".join(piece for piece, _ in cut) == text
    assert [last for _, last in cut] == [False] * (len(cut) - 1) + [True]
    assert len(cut) > 10
    assert all(not piece[-1].isspace() and following[0].isspace() for (piece, _), (following, _) in pairwise(cut))


def test_byte_order_mark_is_dropped(tmp_path):
    assert whole(corpus(tmp_path, b"\xef\xbb\xbfabc\n")) == "abc\n"


def test_what_is_no_utf8_is_named_by_file_and_line(tmp_path):
    with pytest.raises(UserError, match=r"train\.txt, line 3: byte 2 \(0xff\) is no UTF-8; convert the file"):
        whole(corpus(tmp_path, b"fine\nfine\na\xff\n"))
    late = Source(tmp_path / "train.txt", start=5)
    with pytest.raises(UserError, match="line 3"):
        list(lines(late))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: is no JSON"),
        ("a.jsonl", "[1]\n", "line 1: is no JSON object"),
        ("a.tsv", "a\ttext\n1\n", "line 2: has 1 cells, the header has 2"),
        ("a.tsv", "a\tb\n1\t2\n", "line 2: has no column 'text' but 'a', 'b'"),
        ("a.parquet", "junk", "cannot be read as parquet|pip install pyarrow"),
    ],
)
def test_damaged_tables(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        list(corpus(tmp_path, content, name).documents("train"))


def test_bad_options(tmp_path):
    with pytest.raises(UserError, match=r"no text files found as data\.corpus\.train 'none\.txt'"):
        whole(TextFiles(str(tmp_path), train="none.txt"))
    with pytest.raises(UserError, match=r"--data\.corpus\.download true fetches it"):
        whole(TextFiles(str(tmp_path), url="https://example.org/a.zip"))
    with pytest.raises(UserError, match="no test split; it has train"):
        whole(TextFiles(str(tmp_path)), "test")
    with pytest.raises(UserError, match="held_out is 1"):
        TextFiles(held_out=1)
    with pytest.raises(UserError, match="both say what validation is"):
        TextFiles(held_out=0.1, val="val.txt")


def test_what_is_missing_is_fetched_and_checked(tmp_path):
    (tmp_path / "there.txt").write_text("text\n")
    options = {"train": "there.txt", "url": f"file://{tmp_path}/there.txt", "download": True}
    assert whole(TextFiles(str(tmp_path / "new"), **options)) == "text\n"
    with pytest.raises(UserError, match="published MD5"):
        whole(TextFiles(str(tmp_path / "other"), **options, md5="0" * 32))


def test_the_sample_corpus_is_written_once_and_split_by_topic(tmp_path):
    topics = PythonTopics(str(tmp_path / "a"))
    again = PythonTopics(str(tmp_path / "b"))
    assert topics.splits == ["train", "val", "test"]
    texts = {split: whole(topics, split) for split in topics.splits}
    assert texts == {split: whole(again, split) for split in topics.splits}
    size = sum(map(len, texts.values()))
    assert size > 200_000
    assert all(0.05 < len(texts[split]) / size < 0.15 for split in ("val", "test"))
    (tmp_path / "a" / "train.txt").write_text("mine\n")
    assert whole(topics) == "mine\n"


def test_no_paragraph_of_the_sample_corpus_is_in_two_splits(tmp_path):
    topics = PythonTopics(str(tmp_path))
    sentences = {s: {x for d in topics.documents(s) for x in d if len(x) > 80} for s in topics.splits}
    for split in ("val", "test"):
        assert len(sentences[split] & sentences["train"]) < 0.01 * len(sentences[split])


def test_topics_become_sentences():
    prose = "Title\n*****\n\nOne sentence\ngoes on. Two.\n\n   >>> x = 1\n   1\n"
    assert documents({"a": prose, "bb": "Two more.\n\nOne sentence\ngoes on. Two."}) == {
        "a": ["Title", "One sentence goes on.", "Two.", ">>> x = 1", "1"],
        "bb": ["Two more."],
    }
    assert paragraph_lines("   An indented remark\n   ends here.") == ["An indented remark ends here."]
    assert paragraph_lines("   x = f()\n   y = 2") == ["x = f()", "y = 2"]


def test_dealing_gives_every_document_to_one_split():
    texts = {str(i): ["x" * (10 + i)] for i in range(100)} | {"big": ["y" * 3000]}
    dealt = deal(texts)
    assert sorted(name for part in dealt.values() for name in part) == sorted(texts)
    assert "big" in dealt["train"]


def test_rows_without_header(tmp_path):
    (tmp_path / "a.tsv").write_text("gj04\t1\t\tOne.\n\n")
    assert list(cells(tmp_path / "a.tsv")) == [(1, ["gj04", "1", "", "One."])]
    assert list(rows(tmp_path / "a.tsv")) == []
