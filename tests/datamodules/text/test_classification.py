"""Labelled sentences: tables of all kinds, rows of all tokenisers, and what users get wrong."""

import json

import numpy as np
import pytest
import torch

from datamodules.text import ClassificationData, GlueFiles, LabelledFiles, PythonLines, PythonTopics
from datamodules.text.classification import RowEncoder, TextRows, collate_texts, shortened
from datamodules.text.elmo_characters import BOUNDARIES, word_characters
from datamodules.text.tokenizers import Bytes, Words
from errors import UserError
from tests.datamodules.text.builders import attached

ROLES = {role: f"<{role}>" for role in ("pad", "unk", "cls", "sep", "mask")}


def table(folder, content, name="train.tsv", **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, "utf-8")
    return LabelledFiles(str(folder), name, **options)


def read(corpus, split="train"):
    return [(example.text, example.second, label) for example, label in corpus.examples(split)]


def test_a_table_with_a_header(tmp_path):
    corpus = table(tmp_path, 'id\ttext\tlabel\n1\tso "good\tyes\n2\tbad\tno\n')
    assert corpus.class_names == ["no", "yes"]
    assert read(corpus) == [('so "good', "", 1.0), ("bad", "", 0.0)]


def test_a_table_of_pairs_without_a_header(tmp_path):
    corpus = table(
        tmp_path, "10\ta\tb\n9\tc\td\n", columns=["y", "first", "other"], text="first", second="other", label="y"
    )
    assert corpus.class_names == ["9", "10"]  # numbers by size
    assert read(corpus) == [("a", "b", 1.0), ("c", "d", 0.0)]


def test_json_csv_and_parquet(tmp_path):
    rows = [{"text": "한국어, 네", "label": 1}, {"text": 'x "y"', "label": 0}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    expected = [("한국어, 네", "", 1.0), ('x "y"', "", 0.0)]
    assert read(table(tmp_path, lines, "a.jsonl")) == expected
    assert read(table(tmp_path, 'label,text\n1,"한국어, 네"\n0,"x ""y"""\n', "a.csv")) == expected
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(LabelledFiles(str(tmp_path), "a.parquet")) == expected


def test_regression_and_named_classes(tmp_path):
    assert read(table(tmp_path, "text\tlabel\na\t3.25\n", regression=True)) == [("a", "", 3.25)]
    corpus = table(tmp_path, "text\tlabel\na\tyes\n", labels=["yes", "no"])
    assert read(corpus) == [("a", "", 0.0)]


def test_held_out_rows_are_spread(tmp_path):
    content = "text\tlabel\n" + "".join(f"{i}\t{i % 2}\n" for i in range(20))
    corpus = table(tmp_path, content, held_out=0.25)
    assert corpus.splits == ["train", "val"]
    assert [text for text, _, _ in read(corpus, "val")] == ["3", "7", "11", "15", "19"]
    assert len(read(corpus)) == 15


@pytest.mark.parametrize(
    ("task", "files", "expected"),
    [
        ("cola", {"train": "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo one.\n"}, [("One.", "", 1.0), ("Two one.", "", 0.0)]),
        ("sst2", {"train": "sentence\tlabel\nfine \t1\nbad \t0\n"}, [("fine ", "", 1.0), ("bad ", "", 0.0)]),
        (
            "mrpc",
            {"train": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe "said\tso\n0\t7\t9\tx\ty\n'},
            [('He "said', "so", 1.0), ("x", "y", 0.0)],
        ),
        ("stsb", {"train": "index\tsentence1\tsentence2\tscore\n0\ta\tb\t4.5\n"}, [("a", "b", 4.5)]),
        (
            "qqp",
            {"train": "id\tquestion1\tquestion2\tis_duplicate\n0\ta?\tb?\t0\n1\tbroken\n2\tc?\td?\t1\n"},
            [("a?", "b?", 0.0), ("c?", "d?", 1.0)],
        ),
    ],
)
def test_layout_of_glue(tmp_path, task, files, expected):
    for split, content in files.items():
        (tmp_path / f"{split}.tsv").write_text(content, "utf-8")
    corpus = GlueFiles(task, str(tmp_path))
    assert read(corpus) == expected
    assert corpus.splits == ["train", "val"]


def test_classes_of_mnli(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    for name in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / f"{name}.tsv").write_text(
            header + "0\ta\tb\tx\tneutral\n1\ta\tb\tx\tentailment\n2\ta\tb\tx\tcontradiction\n"
        )
    corpus = GlueFiles("mnli", str(tmp_path))
    assert corpus.splits == ["train", "val", "test"]
    assert corpus.class_names == ["contradiction", "entailment", "neutral"]
    assert read(corpus, "test")[0] == ("a", "b", 2.0)


def rows(tokenizer, pairs, context=9, **options):
    encoder = RowEncoder(tokenizer, context=context, **{"characters": False} | options)
    dataset = TextRows(encoder.encode(pairs), encoder)
    return [dataset[0, i] for i in range(len(dataset))]


def test_rows_with_marks():
    tokenizer = Words(["a", "b", "c", "d"], ROLES)
    pad, _, cls, sep, _, a, b, c, d = range(9)
    single, pair, cut = rows(tokenizer, [("a b", ""), ("a", "b c"), ("a b c d a b", "c d a")])
    assert single["input_ids"].tolist() == [cls, a, b, sep]
    assert single["token_type_ids"].tolist() == [0, 0, 0, 0]
    assert pair["input_ids"].tolist() == [cls, a, sep, b, c, sep]
    assert pair["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1]
    assert cut["input_ids"].tolist() == [cls, a, b, c, sep, c, d, a, sep]
    batch = collate_texts([single, pair], pad=pad)
    assert batch["input_ids"].tolist() == [[cls, a, b, sep, pad, pad], [cls, a, sep, b, c, sep]]
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]
    assert batch["index"].tolist() == [0, 1]


def test_rows_of_causal_models():
    end = 2
    single, pair, empty = rows(
        Words(["a"], {"unk": "?", "x": "x", "eos": "<eos>"}), [("a a", ""), ("a", "a"), ("", "")]
    )
    assert single["input_ids"].tolist() == [3, 3, end]
    assert pair["input_ids"].tolist() == [3, end, 3, end]
    assert empty["input_ids"].tolist() == [end]
    (plain,) = rows(Bytes(), [("hi", "yo")])
    assert plain["input_ids"].tolist() == list(b"hiyo")
    assert plain["token_type_ids"].tolist() == [0, 0, 1, 1]


def test_rows_of_characters():
    tokenizer = Words([], {"unk": "<unk>"})
    single, pair = rows(tokenizer, [("für dich", ""), ("a", "b c")], characters=True)
    assert np.array_equal(single["character_ids"], word_characters(["für", "dich"]))
    expected = np.concatenate([word_characters(["a"]), BOUNDARIES[::-1], word_characters(["b", "c"])])
    assert np.array_equal(pair["character_ids"], expected)
    batch = collate_texts([single, pair], pad=0)
    assert batch["character_ids"].shape == (2, 5, 50)
    assert batch["attention_mask"].sum(1).tolist() == [2, 5]
    assert not batch["character_ids"][0, 2:].any()


@pytest.mark.parametrize(
    ("lengths", "most", "left"),
    [((5, 3), 8, (5, 3)), ((9, 2), 6, (4, 2)), ((2, 9), 6, (2, 4)), ((5, 5), 7, (4, 3)), ((9, 7), 4, (2, 2))],
)
def test_shortened(lengths, most, left):
    # As in BERT's run_classifier.py: the longer one loses its last token, the second if both are equal.
    first, second = list(range(lengths[0])), list(range(lengths[1]))
    assert [len(part) for part in shortened([first, second], most)] == list(left)
    while len(first) + len(second) > most:
        (first if len(first) > len(second) else second).pop()
    assert shortened([list(range(n)) for n in lengths], most) == [first, second]


def test_the_sample(tmp_path):
    corpus = PythonLines(str(tmp_path / "lines"))
    module = attached(ClassificationData(corpus=corpus, tokenizer="words", vocabulary=800))
    assert module.class_names == ["prose", "code"] and module.num_classes == 2
    texts = {split: {text for text, _, _ in read(corpus, split)} for split in module.splits}
    assert all(len(texts[split]) == module.size(split) > 300 for split in module.splits)
    assert not texts["train"] & texts["test"] and not texts["val"] & texts["test"]
    # Lines of a split are of the same split of the corpus that BERT is pretrained on.
    topics = PythonTopics(str(tmp_path / "topics"))
    for split in ("val", "test"):
        whole = {line for document in topics.documents(split) for line in document}
        assert texts[split] <= whole
    labels = torch.cat([batch["labels"] for batch in module.train_dataloader()])
    assert 0.2 < labels.float().mean() < 0.45
    described = module.description()
    assert json.loads(json.dumps(described)) == described
    assert (described["task"], described["class_names"]) == ("text_classification", ["prose", "code"])


def test_same_samples_with_workers_and_a_second_start(tmp_path):
    def batches(**options):
        corpus = table(tmp_path, "text\tlabel\n" + "".join(f"word {i}\t{i % 3}\n" for i in range(30)))
        return list(
            attached(ClassificationData(corpus=corpus, tokenizer="words", batch_size=4, **options)).train_dataloader()
        )

    for a, b in zip(batches(), batches(num_workers=2), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_texts_to_predict_on(tmp_path):
    (tmp_path / "texts.txt").write_text("a b\na\tb\n")
    corpus = table(tmp_path, "text\tlabel\na b\t0\nb\t1\n")
    module = attached(
        ClassificationData(corpus=corpus, tokenizer="wordpiece", vocabulary=20, texts=str(tmp_path / "texts.txt"))
    )
    (batch,) = module.predict_dataloader()
    assert "labels" not in batch
    assert module.tokenizer.decode(batch["input_ids"][1]) == "[CLS] a [SEP] b [SEP]"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text\tlabels\na\t1\n", {}, r"train.tsv, line 2: has no column 'label' but 'text', 'labels'"),
        ("text\tlabel\na\t1\nb\n", {}, r"train.tsv, line 3: has 1 cells instead of 2"),
        ("text\tlabel\na\tmaybe\n", {"labels": ["no", "yes"]}, r"line 2: the label 'maybe' is none of no, yes"),
        ("text\tlabel\na\thigh\n", {"regression": True}, r"line 2: the label 'high' is no number"),
        ("text\tlabel\na\t1\nb\t1\n", {}, "the column 'label' of the training files has 1 different labels"),
        ("text\tlabel\n", {"labels": ["0", "1"]}, "the train split of table has no rows"),
    ],
)
def test_tables_that_are_wrong(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        ClassificationData(corpus=table(tmp_path, content, **options), tokenizer="bytes").size("train")


def test_other_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"nothing.tsv: there is no such file"):
        read(LabelledFiles(str(tmp_path), "nothing.tsv"))
    (tmp_path / "latin.tsv").write_bytes("text\tlabel\nfür\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.tsv, line 2: byte 2 \(0xfc\) is no UTF-8"):
        read(LabelledFiles(str(tmp_path), "latin.tsv"))
    with pytest.raises(UserError, match="GLUE has no task 'squad': choose one of cola"):
        GlueFiles("squad", ".")
    with pytest.raises(UserError, match="both say what validation is"):
        LabelledFiles(val="dev.tsv", held_out=0.1)
    with pytest.raises(UserError, match="characters needs a tokeniser of words"):
        RowEncoder(Bytes(), context=9, characters=True)
    corpus = table(tmp_path, "text\tlabel\na\t0\n\t1\n")
    with pytest.raises(UserError, match="line 3: the text is empty"):
        ClassificationData(corpus=corpus, tokenizer="bytes").size("train")
