import math
from typing import NamedTuple

import pytest
import torch

from metrics.loss import DatasetLoss


class Term(NamedTuple):
    numerator: torch.Tensor
    denominator: torch.Tensor
    weight: float
    offset: float


def terms(class_sums, box_sums, positives):
    count = torch.tensor(positives, dtype=torch.float32)
    return {
        "class_loss": Term(torch.tensor(class_sums, requires_grad=True), count, 1.0, 1.0),
        "box_loss": Term(torch.tensor(box_sums), 4 * count, 50.0, 4.0),
    }


def test_the_loss_of_a_dataset_is_a_ratio_of_sums():
    """Not the mean of (6 / 3) and (4 / 2), which would be 2."""
    loss = DatasetLoss(3)
    loss.update(torch.tensor([2, 0]), terms([1.0, 5.0], [0.1, 0.3], [0, 2]))
    loss.update(torch.tensor([1]), terms([4.0], [0.4], [1]))
    values = loss.compute()
    assert list(values) == ["loss", "class_loss", "box_loss"]
    assert values["class_loss"] == pytest.approx(10 / 4)
    assert values["box_loss"] == pytest.approx(50 * 0.8 / 16)
    assert values["loss"] == values["class_loss"] + values["box_loss"]


def test_an_image_counts_once():
    loss = DatasetLoss(2)
    loss.update(torch.tensor([0, 1]), terms([1.0, 2.0], [0.0, 0.0], [1, 1]))
    loss.update(torch.tensor([0]), terms([1.0], [0.0], [1]))
    assert loss.compute()["class_loss"] == 1.0


def test_a_term_without_weight_in_the_set_is_undefined():
    loss = DatasetLoss()
    loss.update(torch.tensor([0]), {"mask": Term(torch.zeros(1), torch.zeros(1), 1.0, 0.0)})
    values = loss.compute()
    assert values["mask"] != values["mask"]


def test_sums_are_exact_in_any_order():
    """float32 would lose the ones beside 3e8, float64 sums the tenths differently in another order."""
    numerators = [3e8, 0.1, 1.0, 0.3, 1.0, 0.7, -3e8]
    expected = math.fsum(torch.tensor(numerators).double().tolist()) / 8
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 0, 5, 3, 1, 4]):
        loss = DatasetLoss(7)
        for i in order:
            loss.update(torch.tensor([i]), {"class": Term(torch.tensor([numerators[i]]), torch.ones(1), 1.0, 1.0)})
        assert loss.compute()["class"] == expected
