import math

import numpy as np
import torch

from models.language import sampled_softmax
from models.language.sampled_softmax import SharedSoftmax, expected_count, log_uniform_sample


def test_draws_are_log_uniform():
    torch.manual_seed(0)
    counts = np.zeros(20)
    tries = 0
    for _ in range(3000):
        words, t = log_uniform_sample(1, 20)
        counts[words] += 1
        tries += t
    assert tries == 3000  # the first is always new
    expected = np.log((np.arange(20) + 2) / (np.arange(20) + 1)) / math.log(21)
    np.testing.assert_allclose(counts / 3000, expected, atol=0.03)


def test_samples_have_no_repetition_and_the_expected_counts():
    torch.manual_seed(0)
    counts, tries = np.zeros(30), []
    for _ in range(1500):
        words, t = log_uniform_sample(8, 30)
        assert len(set(words.tolist())) == 8 and t >= 8 and words.max() < 30
        counts[words] += 1
        tries.append(t)
    assert len(set(tries)) > 5
    given = np.mean([expected_count(torch.arange(30), t, 30).numpy() for t in tries], 0)
    np.testing.assert_allclose(counts / 1500, given, atol=0.05)


def test_the_whole_vocabulary_can_be_drawn():
    words, tries = log_uniform_sample(50, 50)
    assert sorted(words.tolist()) == list(range(50)) and tries > 50


def test_training_takes_the_sample_and_evaluation_all_words(monkeypatch):
    torch.manual_seed(1)
    softmax = SharedSoftmax(9, 4, samples=3)
    torch.nn.init.normal_(softmax.bias)
    x, targets = torch.randn(1, 3, 4), torch.tensor([[2, -100, 5]])
    drawn, tries = torch.tensor([0, 5, 7]), 4
    monkeypatch.setattr(sampled_softmax, "log_uniform_sample", lambda *args: (drawn, tries))
    log_expected = lambda k: math.log(1 - (1 - math.log((k + 2) / (k + 1)) / math.log(10)) ** tries)  # noqa: E731
    total = 0.0
    for place, right in ((0, 2), (2, 5)):
        logit = lambda k, place=place: (  # noqa: E731
            (x[0, place] @ softmax.weight[k] + softmax.bias[k]).item() - log_expected(k)
        )
        others = [k for k in (0, 5, 7) if k != right]  # a hit by accident is no wrong word
        total -= logit(right) - math.log(sum(math.exp(logit(k)) for k in [right, *others]))
    term = softmax.train()(x, targets)
    assert abs(term.numerator.item() - total) < 1e-5
    assert term.denominator.item() == 2
    full = softmax.eval()(x, targets)
    log = (x @ softmax.weight.T + softmax.bias).log_softmax(-1)
    torch.testing.assert_close(full.numerator[0], -(log[0, 0, 2] + log[0, 2, 5]))


def test_no_sample_where_it_would_be_everything():
    for samples in (None, 9, 10):
        softmax = SharedSoftmax(9, 4, samples=samples).train()
        x, targets = torch.randn(2, 3, 4), torch.randint(9, (2, 3))
        assert not softmax.is_sampled
        torch.testing.assert_close(softmax(x, targets).numerator, softmax.eval()(x, targets).numerator)


def test_evaluation_in_parts_is_the_same(monkeypatch):
    softmax = SharedSoftmax(9, 4).eval()
    x, targets = torch.randn(5, 7, 4), torch.randint(9, (5, 7))
    with torch.no_grad():
        whole = softmax(x, targets).numerator
        monkeypatch.setattr(sampled_softmax, "ELEMENTS", 30)
        torch.testing.assert_close(softmax(x, targets).numerator, whole)


def test_sampled_training_finds_the_frequencies():
    """With nothing to go by, a softmax trained on samples gives every word its frequency."""
    torch.manual_seed(0)
    softmax = SharedSoftmax(12, 1, samples=9)
    wanted = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.04, 0.03, 0.01, 0.01, 0.01])
    optimizer = torch.optim.Adam([softmax.bias], 0.05)
    x = torch.zeros(1, 512, 1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        targets = torch.multinomial(wanted, 512, replacement=True)[None]
        softmax(x, targets).value().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(softmax.bias.softmax(0).detach(), wanted, rtol=0, atol=0.02)
