"""Generation, filling of masks and scoring, by transformers and by a recurrent network."""

import pytest
import torch
from torch import nn

from errors import UserError
from models.language.bert import BERT
from models.language.generation import fill_mask, generate, score, score_masked
from models.language.gpt import GPT
from models.language.language_model import LanguageModel

VOCAB = 23


class Recurrent(LanguageModel):
    """The smallest network that carries a state."""

    def __init__(self):
        super().__init__()
        self.vocab_size, self.hidden_size = VOCAB, 8
        self.embedding = nn.Embedding(VOCAB, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, VOCAB)

    def forward(self, batch, state=None):
        if state is not None:
            state = state * ~batch["fresh"][None, :, None]
        hidden, state = self.gru(self.embedding(batch["input_ids"]), state)
        return {"logits": self.out(hidden)}, state

    def loss_terms(self, outputs, batch):
        raise NotImplementedError

    encode = loss_terms


def network_of(kind):
    torch.manual_seed(4 if kind == "recurrent" else 0)  # whose networks do not fall into repeating one token
    if kind == "recurrent":
        network = Recurrent()
    else:
        network = GPT(vocab_size=VOCAB, layers=2, heads=2, hidden_size=16, context_length=12 if kind == "short" else 64)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    if kind != "recurrent":
        network.tokens.weight.data *= 0.3  # or a tied network repeats one token for ever
    return network


KINDS = pytest.mark.parametrize("kind", ["gpt", "short", "recurrent"])
PROMPTS = [torch.tensor([3, 4, 5, 6, 7]), torch.tensor([1]), torch.tensor([9, 2])]


def by_hand(network, prompt, count):
    """The likeliest continuation, everything computed anew."""
    tokens = prompt.tolist()
    for _ in range(count):
        visible = tokens[-(network.context_length or len(tokens)) :]
        batch = {"input_ids": torch.tensor([visible]), "fresh": torch.tensor([True])}
        tokens.append(int(network(batch)[0]["logits"][0, -1].argmax()))
    return tokens


@KINDS
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_greedy_text_is_that_of_recomputation(kind, use_cache):
    network = network_of(kind).eval()
    texts = generate(network, PROMPTS, max_new_tokens=20, temperature=0, use_cache=use_cache)
    assert [text.tolist() for text in texts] == [by_hand(network, prompt, 20) for prompt in PROMPTS]
    assert all(len(set(text.tolist())) > 4 for text in texts)


@KINDS
def test_draws_are_the_same_with_and_without_cache(kind):
    network = network_of(kind)
    texts = [
        generate(
            network, PROMPTS, max_new_tokens=20, top_k=9, top_p=0.9, use_cache=use_cache,
            generator=torch.Generator().manual_seed(5),
        )
        for use_cache in (True, False)
    ]  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(*texts, strict=True))
    assert network.training


class Fixed(Recurrent):
    """Probabilities 0.4, 0.3, 0.2, 0.1 for the first four tokens whatever went before."""

    def forward(self, batch, state=None):
        logits = torch.full((*batch["input_ids"].shape, VOCAB), -torch.inf)
        logits[..., :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
        return {"logits": logits}, None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 100}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # 4/9 of the remaining three is too little
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0}, [1, 0, 0, 0]),
    ],
)
def test_distribution_of_the_draws(options, expected):
    torch.manual_seed(0)
    prompts = torch.zeros(200, 1, dtype=torch.long)
    texts = generate(Fixed(), prompts, max_new_tokens=50, **options)
    shares = torch.stack(texts)[:, 1:].flatten().bincount(minlength=4) / 10_000
    torch.testing.assert_close(shares, torch.tensor(expected).float(), atol=0.02, rtol=0)
    assert all(share == 0 for share, wanted in zip(shares, expected, strict=True) if wanted == 0)


def test_a_stop_token_ends_its_row_only():
    torch.manual_seed(0)
    prompts = [torch.tensor([3, 1, 3, 3]), torch.tensor([3])] * 20  # the one in the prompt does not count
    texts = generate(Fixed(), prompts, max_new_tokens=6, stop_token=3)
    ends = set()
    for text, prompt in zip(texts, prompts, strict=True):
        new = text[len(prompt) :].tolist()
        assert torch.equal(text[: len(prompt)], prompt)
        assert 3 not in new[:-1]
        assert len(new) == 6 or new[-1] == 3
        ends.add(len(new))
    assert 6 in ends
    assert len(ends) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature -1"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens -1"),
        ({"prompts": [torch.tensor([], dtype=torch.long)]}, "a prompt of generate is empty"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        generate(Fixed(), **{"prompts": PROMPTS, "max_new_tokens": 1} | options)


def test_no_new_tokens_is_the_prompt():
    for text, prompt in zip(generate(Fixed(), PROMPTS, max_new_tokens=0), PROMPTS, strict=True):
        assert torch.equal(text, prompt)


@KINDS
@torch.no_grad()
def test_scores_add_up_log_probabilities(kind):
    network = network_of(kind).eval()
    sequences = [torch.tensor([3, 4, 5, 6, 7]), torch.tensor([9, 2])]
    scores = score(network, sequences)
    for sequence, found in zip(sequences, scores, strict=True):
        batch = {"input_ids": sequence[None, :-1], "fresh": torch.tensor([True])}
        log_p = network(batch)[0]["logits"][0].log_softmax(-1)
        expected = sum(log_p[t, token] for t, token in enumerate(sequence[1:]))
        torch.testing.assert_close(found, expected.double())
    with pytest.raises(UserError, match="fewer than two tokens"):
        score(network, [torch.tensor([1])])


@torch.no_grad()
def test_scores_of_sequences_beyond_the_context():
    network = network_of("short").eval()  # of 12 tokens
    long = torch.randint(VOCAB, (40,), generator=torch.Generator().manual_seed(0))
    short = torch.tensor([1, 2, 3])

    def by_windows(sequence, start, stop, first):
        log_p = network({"input_ids": sequence[None, start:stop]})[0]["logits"][0].log_softmax(-1)
        return sum(log_p[t - start, sequence[t + 1]] for t in range(first, stop))

    expected = by_windows(long, 0, 12, 0)
    for stop in (18, 24, 30, 36):
        expected += by_windows(long, stop - 12, stop, stop - 6)
    expected += by_windows(long, 27, 39, 36)
    found = score(network, [long, short])
    torch.testing.assert_close(found[0], expected.double())
    torch.testing.assert_close(found[1], by_windows(short, 0, 2, 0).double())


@torch.no_grad()
def test_a_masked_model_scores_each_token_by_all_others():
    torch.manual_seed(0)
    network = BERT(vocab_size=VOCAB, layers=1, heads=2, hidden_size=16, context_length=16).eval()
    ids = torch.tensor([5, 8, 9, 6])
    counted = torch.tensor([False, True, True, False])
    found, tokens = score_masked(network, ids, mask_token=1, counted=counted, rows_at_once=1)
    expected = 0.0
    for place in (1, 2):
        hidden = ids.clone()
        hidden[place] = 1
        batch = {"input_ids": hidden[None], "masked_positions": torch.tensor([[place]])}
        expected += network(batch)[0]["masked_logits"].log_softmax(-1)[0, ids[place]].item()
    assert tokens == 2
    assert found == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_fill_mask():
    torch.manual_seed(0)
    network = BERT(vocab_size=VOCAB, layers=2, heads=2, hidden_size=16, context_length=16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    ids = torch.tensor([[5, 1, 6, 1, 7], [5, 8, 1, 0, 0]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    filling = fill_mask(network, ids, mask_token=1, top_k=3, attention_mask=mask, token_type_ids=types)
    assert network.training
    assert filling.row.tolist() == [0, 0, 1]
    assert filling.position.tolist() == [1, 3, 2]
    network.eval()
    for row, length, places in ((0, 5, [1, 3]), (1, 3, [2])):
        batch = {
            "input_ids": ids[row : row + 1, :length],
            "token_type_ids": types[row : row + 1, :length],
            "masked_positions": torch.tensor([places]),
        }
        best = network(batch)[0]["masked_logits"].softmax(-1).topk(3)
        torch.testing.assert_close(filling.tokens[filling.row == row], best.indices)
        torch.testing.assert_close(filling.probabilities[filling.row == row], best.values)
    with pytest.raises(UserError, match="mask token 1"):
        fill_mask(network, torch.tensor([[5, 6]]), mask_token=1)
