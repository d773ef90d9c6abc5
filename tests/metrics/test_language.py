"""Perplexity from sums, correlations against their definitions, equal on several processes."""

import json
import math

import numpy as np
import pytest
import torch

from metrics.language import ClassificationMetric, LanguageMetric
from models.loss_term import LossTerm
from tests.helpers import finish, start


def term(nats, tokens, weight=1.0):
    return LossTerm(torch.tensor(nats), torch.tensor(tokens), weight, 0.0)


def test_perplexity_is_not_a_mean_of_perplexities():
    metric = LanguageMetric(3, {"nll": "perplexity"}, {"bytes": 20, "characters": 10, "words": 4})
    metric.update(torch.tensor([0, 1]), {"nll": term([2.0, 9.0], [2.0, 3.0])})
    metric.update(torch.tensor([2]), {"nll": term([1.0], [5.0])})
    values = metric.compute()
    assert values["nll"] == values["loss"] == pytest.approx(1.2)
    assert values["perplexity"] == pytest.approx(math.exp(12 / 10))
    assert values["bits_per_byte"] == pytest.approx(12 / math.log(2) / 20)
    assert values["bits_per_character"] == pytest.approx(12 / math.log(2) / 10)
    assert values["word_perplexity"] == pytest.approx(math.exp(12 / 4))


def test_a_part_of_a_text_has_no_likelihood_per_byte():
    metric = LanguageMetric(2, {"nll": "perplexity"}, {"bytes": 20})
    metric.complete = False  # as a sanity check or limit_val_batches sets it
    metric.update(torch.tensor([0]), {"nll": term([2.0], [2.0])})
    assert metric.compute() == {"loss": 1.0, "nll": 1.0, "perplexity": pytest.approx(math.e)}


def test_weights_of_terms_do_not_change_their_perplexities():
    names = {"forward_loss": "forward_perplexity", "backward_loss": "backward_perplexity"}
    metric = LanguageMetric(1, names, {"bytes": 7})
    terms = {"forward_loss": term([4.0], [2.0], 0.5), "backward_loss": term([6.0], [2.0], 0.5)}
    metric.update(torch.tensor([0]), terms)
    values = metric.compute()
    assert values["loss"] == 2.5
    assert values["forward_perplexity"] == pytest.approx(math.exp(2))
    assert values["backward_perplexity"] == pytest.approx(math.exp(3))
    assert values["forward_bits_per_byte"] == pytest.approx(4 / math.log(2) / 7)


def test_shares_of_right_predictions_weigh_by_their_number():
    metric = LanguageMetric(2, {})
    terms = {"masked_loss": term([1.0], [1.0])}
    for i, (hits, counts) in enumerate(((1.0, 1.0), (0.0, 3.0))):
        metric.update(torch.tensor([i]), terms, {"masked_accuracy": (torch.tensor([hits]), torch.tensor([counts]))})
    assert metric.compute()["masked_accuracy"] == 0.25


def test_an_overflowing_perplexity_is_infinite():
    metric = LanguageMetric(1, {"nll": "perplexity"})
    metric.update(torch.tensor([0]), {"nll": term([1000.0], [1.0])})
    assert metric.compute()["perplexity"] == math.inf


def classified(scores, labels, classes):
    metric = ClassificationMetric(len(labels), classes)
    metric.update(torch.arange(len(labels)), torch.tensor(scores), torch.tensor(labels))
    return metric.compute()


def test_binary_classification():
    found = [1, 1, 1, 0, 0, 0, 0, 1]
    truth = [1, 1, 0, 0, 0, 1, 0, 0]
    values = classified([[1.0 - f, float(f)] for f in found], truth, 2)
    tp, fp, fn, tn = 2, 2, 1, 3
    assert values["accuracy"] == 5 / 8
    assert values["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert values["matthews"] == pytest.approx(expected)


def test_one_class_predicted_throughout_has_no_correlation():
    assert classified([[1.0, 0.0]] * 4, [0, 1, 0, 1], 2)["matthews"] == 0


def test_several_classes():
    rng = np.random.default_rng(0)
    found, truth = rng.integers(3, size=50), rng.integers(3, size=50)
    values = classified(np.eye(4, dtype=np.float32)[found].tolist(), truth.tolist(), 4)
    f1 = [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in range(3)]
    assert values["f1"] == pytest.approx(np.mean(f1))
    one_hot = [np.eye(4)[labels].ravel() - np.tile(np.eye(4)[labels].mean(0), 50) for labels in (found, truth)]
    covariance = [(a * b).sum() for a, b in ((one_hot[0], one_hot[1]), (one_hot[0],) * 2, (one_hot[1],) * 2)]
    assert values["matthews"] == pytest.approx(covariance[0] / math.sqrt(covariance[1] * covariance[2]))


def test_regression():
    rng = np.random.default_rng(1)
    truth = rng.integers(5, size=30).astype(np.float32)  # with ties
    found = truth + rng.normal(size=30).astype(np.float32)
    values = classified(found[:, None].tolist(), truth.tolist(), 1)
    assert values["pearson"] == pytest.approx(np.corrcoef(found, truth)[0, 1], abs=1e-6)

    def ranks(x):
        return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])

    assert values["spearman"] == pytest.approx(np.corrcoef(ranks(found), ranks(truth))[0, 1], abs=1e-6)


SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from metrics.language import LanguageMetric
from models.loss_term import LossTerm

rank, world = int(sys.argv[1]), int(sys.argv[2])
if world > 1:
    dist.init_process_group("gloo", init_method="tcp://" + sys.argv[3], rank=rank, world_size=world)
metric = LanguageMetric(11, {"nll": "perplexity"}, {"bytes": 100})
for index in range(rank, 11, world):
    nats = torch.rand(1, generator=torch.Generator().manual_seed(index)) * 100
    metric.update(torch.tensor([index]), {"nll": LossTerm(nats, torch.tensor([float(index + 1)]), 1.0, 0.0)})
print(json.dumps({k: v.hex() for k, v in metric.compute().items()}))
"""


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_bits_on_several_processes(world, free_address):
    alone = finish(start("-c", SCRIPT, "0", "1"))
    processes = [start("-c", SCRIPT, str(rank), str(world), free_address) for rank in range(world)]
    for status, output in [finish(process) for process in processes]:
        assert status == 0, output
        assert json.loads(output.splitlines()[-1]) == json.loads(alone[1].splitlines()[-1])
