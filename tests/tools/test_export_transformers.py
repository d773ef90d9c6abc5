"""What is exported, transformers reads, and computes the same with it; and so do we."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from datamodules.text.subwords import train_bpe, train_wordpiece  # noqa: E402
from inference import load  # noqa: E402
from models.language import BERT, GPT  # noqa: E402
from models.language.weights import load_weights  # noqa: E402
from tools.export_transformers import main  # noqa: E402

TEXTS = ["the cat sat on the mat. the dog sat on the cat."] * 3
SMALL = {"layers": 2, "heads": 2, "hidden_size": 16, "context_length": 24}
ROLES = ("pad", "unk", "cls", "sep", "mask")


def checkpoint(network, options, tokenizer, path):
    """As train.py writes them."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.05, 0.3)
    class_path = f"models.language.{type(network).__name__}"
    model = {"init_args": {"network": {"class_path": class_path, "init_args": options}}}
    data = {"task": "language", "name": "x", "fingerprint": "f", "tokenizer": tokenizer.state()}
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "triptych": {"format": 1, "config": {"model": model}, "data": data}}, path)
    return str(path)


@torch.no_grad()
def test_gpt(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_bpe(TEXTS, vocabulary=270, min_count=1, specials=("eos",))
    options = SMALL | {"gelu": "erf"}
    file = checkpoint(GPT(vocab_size=tokenizer.vocab_size, **options), options, tokenizer, tmp_path / "best.ckpt")
    folder = tmp_path / "out"
    assert main([file, str(folder)]) == 0
    ours, theirs = load(file, device="cpu"), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = their_tokenizer("the cat sat", return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenizer.encode("the cat sat").tolist()
    assert their_tokenizer.eos_token_id == tokenizer.eos
    torch.testing.assert_close(
        ours.network({"input_ids": ids})[0]["logits"], theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-5
    )
    again = GPT(vocab_size=tokenizer.vocab_size, **options)
    load_weights(again, folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.network.parameters(), strict=True))


@pytest.mark.parametrize("next_sentence", [True, False])
@torch.no_grad()
def test_bert(tmp_path, next_sentence):
    torch.manual_seed(0)
    tokenizer = train_wordpiece(TEXTS, vocabulary=60, min_count=1, specials=ROLES, lowercase=True)
    options = SMALL | {"next_sentence": next_sentence, "inner_size": 32}
    file = checkpoint(BERT(vocab_size=tokenizer.vocab_size, **options), options, tokenizer, tmp_path / "best.ckpt")
    folder = tmp_path / "out"
    assert main([file, str(folder)]) == 0
    kind = transformers.BertForPreTraining if next_sentence else transformers.BertForMaskedLM
    ours, theirs = load(file, device="cpu").network, kind.from_pretrained(folder).eval()
    ids = torch.randint(5, tokenizer.vocab_size, (2, 10), generator=torch.Generator().manual_seed(0))
    found = ours({"input_ids": ids, "masked_positions": torch.arange(10).expand(2, 10)})[0]
    output = theirs(input_ids=ids)
    logits = output.prediction_logits if next_sentence else output.logits
    torch.testing.assert_close(found["masked_logits"].view_as(logits), logits, rtol=1e-4, atol=1e-5)
    if next_sentence:
        torch.testing.assert_close(found["next_sentence_logits"], output.seq_relationship_logits, rtol=1e-4, atol=1e-5)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert their_tokenizer.mask_token_id == tokenizer.mask


def test_mistakes(tmp_path, capsys):
    torch.manual_seed(0)
    tokenizer = train_bpe(TEXTS, vocabulary=260, min_count=1, specials=("eos",))
    file = checkpoint(GPT(vocab_size=tokenizer.vocab_size, **SMALL), SMALL, tokenizer, tmp_path / "best.ckpt")
    assert main([file, str(tmp_path)]) == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    assert main([str(tmp_path / "none.ckpt"), str(tmp_path / "new")]) == 2
    assert "none.ckpt" in capsys.readouterr().err
