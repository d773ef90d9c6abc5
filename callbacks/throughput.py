"""How fast a language model learns: tokens per second, and the share of the device's peak that is used."""

import re
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

# Dense peaks in TFLOP/s of tensor cores in bfloat16 (float16 where there is none), of TF32, and of plain float32, from
# NVIDIA's data sheets; where a sheet counts with sparsity, half of it. The first name that the device's holds counts.
PEAKS: dict[str, tuple[float, float, float]] = {
    "B200": (2250.0, 1125.0, 75.0),  # Blackwell architecture brief
    "GB200": (2250.0, 1125.0, 75.0),
    "H200": (989.5, 494.7, 67.0),  # H200 data sheet
    "GH200": (989.5, 494.7, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),  # H100 data sheet, PCIe
    "H100 NVL": (835.5, 417.5, 60.0),  # H100 data sheet, NVL
    "H100": (989.5, 494.7, 67.0),  # H100 data sheet, SXM
    "A100": (312.0, 156.0, 19.5),  # A100 data sheet
    "A10G": (70.0, 35.0, 35.0),  # as AWS gives it
    "A10": (125.0, 62.5, 31.2),  # A10 data sheet
    "L40S": (362.0, 183.0, 91.6),  # L40S data sheet
    "L40": (181.0, 90.5, 90.5),  # L40 data sheet
    "L4": (121.0, 60.0, 30.3),  # L4 data sheet
    "RTX 4090": (165.2, 82.6, 82.6),  # Ada architecture white paper, float32 accumulation
    "RTX 3090": (71.0, 35.6, 35.6),  # GA102 white paper, float32 accumulation
    "A6000": (154.8, 77.4, 38.7),  # RTX A6000 data sheet
    "V100": (125.0, 15.7, 15.7),  # V100 data sheet, SXM2, float16
    "T4": (65.0, 8.1, 8.1),  # T4 data sheet, float16
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense matrix products that a device can do in a second, in FLOP; None where it is not known, or a part (MIG).

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        precision: the Trainer's, such as `bf16-mixed` or `32-true`. Half precisions, pure or mixed, count as tensor
            cores' 16-bit rate; float32 as TF32 if `torch.set_float32_matmul_precision` allows it.
    """
    row = next((peaks for name, peaks in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)
    if row is None or "MIG" in device_name or precision.startswith("64"):
        return None
    if "16" in precision:
        return row[0] * 1e12
    return (row[2] if torch.get_float32_matmul_precision() == "highest" else row[1]) * 1e12


class Throughput(Callback):
    """Logs `train/tokens_per_second` over all processes and, where it can be known, `train/mfu`.

    Both are means since they were last logged, every `log_every_n_steps`, with the time for data and logging and
    without that for validation. Padding counts for nothing. Model FLOP utilisation (Chowdhery et al. 2022, appendix B)
    is what the network's matrix products need in theory, 3 times a forward pass for a training step, by what the device
    could do; it needs a GPU of the table above and a network that knows its `flops`.

    Args:
        warmup_steps: optimiser steps at the start that do not count: compilation, first allocations.
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        self.warmup_steps = warmup_steps
        self.peak: float | None = None
        self._since = 0.0
        self._paused = 0.0
        self._tokens: float | Tensor = 0
        self._flops: float | Tensor | None = 0
        self._first_step = self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the device's peak."""
        if pl_module.device.type == "cuda":
            self.peak = peak_flops(torch.cuda.get_device_name(pl_module.device), str(trainer.precision))
        self._first_step = self._logged_step = trainer.global_step
        self._restart(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log if it is time to."""
        step = trainer.global_step
        if step - self._first_step < self.warmup_steps:
            self._restart(pl_module)
            return
        self._tokens = self._tokens + count_tokens(batch)
        flops = pl_module.network.flops(batch) if self.peak and self._flops is not None else None
        self._flops = None if flops is None else self._flops + flops
        every = trainer.log_every_n_steps  # 0 logs nothing
        if not every or step == self._logged_step or step % every:
            return
        self._logged_step = step
        seconds = self._now(pl_module) - self._since
        self._since = 0.0
        values = {"train/tokens_per_second": float(self._tokens) * trainer.world_size / seconds}
        if self._flops is not None:
            values["train/mfu"] = 3 * float(self._flops) / seconds / self.peak
        pl_module.log_dict(values, prog_bar=True, batch_size=1)
        self._restart(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = self._now(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        self._since += self._now(pl_module) - self._paused

    def _restart(self, pl_module: LightningModule) -> None:
        self._since = self._now(pl_module)
        self._tokens, self._flops = 0, 0

    @staticmethod
    def _now(pl_module: LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()


def count_tokens(batch: dict[str, Any]) -> int | Tensor:
    """Tokens of a batch without padding; stays on the device if it has to be counted there."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    return batch["input_ids" if "input_ids" in batch else "words"].numel()
