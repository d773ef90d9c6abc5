"""Tokens per second and model FLOP utilisation, with a clock of our own."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from callbacks.throughput import PEAKS, Throughput, count_tokens, peak_flops
from models.language import BERT, GPT

SMALL = {"vocab_size": 50, "layers": 2, "heads": 2, "hidden_size": 16, "context_length": 32}


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.5e12),
        ("NVIDIA H100 PCIe", "bf16-true", 756e12),
        ("NVIDIA A100-SXM4-80GB", "16-mixed", 312e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5e12),
        ("NVIDIA A10G", "bf16-mixed", 70e12),
        ("NVIDIA L40S", "bf16-mixed", 362e12),
        ("NVIDIA H200", "64-true", None),
        ("NVIDIA RTX A1000", "bf16-mixed", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16-mixed", None),
        ("Some Other GPU", "bf16-mixed", None),
    ],
)
def test_peaks(name, precision, peak):
    assert peak_flops(name, precision) == peak


def test_tf32_has_a_peak_of_its_own():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak_flops("NVIDIA A100-SXM4-80GB", "32-true") == 156e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(half >= tf32 >= single for half, tf32, single in PEAKS.values())


def measured(network, batch):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network.eval()(batch)
    return counter.get_total_flops()


def test_theory_equals_what_a_pass_computes():
    gpt = GPT(**SMALL)
    batch = {"input_ids": torch.zeros(3, 20, dtype=torch.long)}
    assert gpt.flops(batch) == measured(gpt, batch)
    bert = BERT(**SMALL, next_sentence=False)
    batch["masked_positions"] = torch.zeros(3, 4, dtype=torch.long)
    assert float(bert.flops(batch)) == measured(bert, batch)
    batch["attention_mask"] = torch.arange(20) < torch.tensor([20, 5, 11])[:, None]
    assert float(bert.flops(batch)) == measured(bert, batch)  # padding costs nothing


def test_tokens_without_padding():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert int(count_tokens({"input_ids": torch.zeros(2, 3), "attention_mask": mask})) == 3
    assert count_tokens({"input_ids": torch.zeros(2, 3)}) == 6
    assert count_tokens({"words": torch.zeros(2, 3)}) == 6


def test_speed_by_the_clock(monkeypatch):
    """Steps of 2 seconds, validation of 100 seconds in between, on 4 processes and a device of 1000 FLOP/s."""
    clock = {"now": 0.0}
    monkeypatch.setattr("callbacks.throughput.time.perf_counter", lambda: clock["now"])
    logged = []
    module = SimpleNamespace(
        device=torch.device("cpu"),
        network=SimpleNamespace(flops=lambda batch: 60.0),
        log_dict=lambda values, **options: logged.append(values),
    )
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=2, world_size=4, precision="32-true")
    callback = Throughput(warmup_steps=3)
    callback.on_train_start(trainer, module)
    callback.peak = 1000.0
    batch = {"input_ids": torch.zeros(2, 10)}
    for step in range(1, 9):
        clock["now"] += 50.0 if step < 3 else 2.0
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, batch, step)
        if step == 5:
            callback.on_validation_start(trainer, module)
            clock["now"] += 100.0
            callback.on_validation_end(trainer, module)
    assert len(logged) == 3  # after steps 4, 6 and 8
    for values in logged:
        assert values["train/tokens_per_second"] == pytest.approx(4 * 20 / 2.0)
        assert values["train/mfu"] == pytest.approx(3 * 60.0 / 2.0 / 1000.0)
