"""BERT's optimiser and schedule, by their formulas."""

import pytest
import torch

from lightning_modules.bert_adam import BertAdam
from lightning_modules.schedules import WarmupLinear


def test_updates_by_the_formula():
    torch.manual_seed(0)
    first, second = (torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64)) for _ in range(2))
    idle = torch.nn.Parameter(torch.ones(1))
    groups = [{"params": [first, idle]}, {"params": [second], "weight_decay": 0.0}]
    optimizer = BertAdam(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    expected = [parameter.detach().clone() for parameter in (first, second)]
    moments = [(torch.zeros(3, 2), torch.zeros(3, 2)) for _ in range(2)]
    for _ in range(3):
        for i, (parameter, decay) in enumerate(((first, 0.3), (second, 0.0))):
            parameter.grad = torch.randn(3, 2, dtype=torch.float64)
            m = 0.8 * moments[i][0] + 0.2 * parameter.grad
            v = 0.9 * moments[i][1] + 0.1 * parameter.grad**2
            moments[i] = (m, v)
            expected[i] = expected[i] - 0.1 * (m / (v.sqrt() + 1e-3) + decay * expected[i])
        optimizer.step()
    torch.testing.assert_close([first.detach(), second.detach()], expected)
    assert idle.item() == 1


def test_its_state_goes_on():
    def train(steps, state=None):
        parameter = torch.nn.Parameter(torch.ones(2) if state is None else state[0].clone())
        optimizer = BertAdam([parameter])
        if state is not None:
            optimizer.load_state_dict(state[1])
        for _ in range(steps):
            parameter.grad = parameter.detach() * 2
            optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    assert torch.equal(train(5)[0], train(2, train(3))[0])


def test_warm_up_and_linear_decay():
    # BERT's own numbers: from 0 over 10,000 of 1,000,000 steps; the decay is counted from step 0, hence a small drop.
    schedule = WarmupLinear(warmup=10_000)
    factors = [schedule.factor(step, 1, 1_000_000) for step in (0, 5_000, 9_999, 10_000, 500_000, 1_000_000)]
    assert factors == pytest.approx([0, 0.5, 0.9999, 0.99, 0.5, 0])
    share = WarmupLinear(warmup=0.1)
    assert [share.factor(step, 1, 40) for step in (0, 2, 4, 20, 41)] == pytest.approx([0, 0.5, 0.9, 0.5, 0])
