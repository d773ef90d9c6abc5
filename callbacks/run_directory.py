"""The directory of a run: its configuration, its results, and what makes a checkpoint sufficient on its own."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

CHECKPOINT_FORMAT = 1


class RunDirectory(Callback):
    """Writes `config.yaml` and `results.json` into the run directory and describes the run in every checkpoint.

    `results.json` holds the metrics of the validation and test splits under `val` and `test`, the checkpoint that
    they were measured with (`null` while training goes on) and the dataset's name and fingerprint.

    A checkpoint gets a block `triptych` of plain JSON types: the whole configuration, and what the data module says
    of its data (class names, category ids, image size). With it a model is loaded from the checkpoint alone.

    Args:
        path: the run directory of this process; every process uses the one of rank 0.
        config: the resolved configuration, JSON types only.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.started = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the directory across processes; write the configuration of a training."""
        self.path = Path(trainer.strategy.broadcast(str(self.path)))
        # Lightning offers no setter. The processes of one run may have chosen different run ids: rank 0 decides.
        trainer._default_root_dir = str(self.path)
        if stage == "fit" and not trainer.fast_dev_run:
            for logger in trainer.loggers:
                logger.log_hyperparams(self.config)
            if trainer.is_global_zero:
                self._write_config()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Describe the run, so that the checkpoint is enough to use the model."""
        checkpoint["triptych"] = {
            "format": CHECKPOINT_FORMAT,
            "config": self.config,
            "data": trainer.datamodule.description(),
            "run": {"dir": str(self.path)},
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation metrics."""
        if not trainer.sanity_checking:
            self._write_results(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the test metrics."""
        self._write_results(trainer, pl_module, "test")

    def _write_config(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.config, sort_keys=False)
        file = self.path / "config.yaml"
        if file.exists() and file.read_text() != text:  # a resumed run may change its configuration: keep both
            file = self.path / f"config_resumed_{time.strftime('%Y%m%d-%H%M%S')}.yaml"
        file.write_text(text)

    def _write_results(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "results.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        training = trainer.state.fn == TrainerFn.FITTING
        data = trainer.datamodule.description()
        results.update(
            {
                "data": {"name": data["name"], "fingerprint": data["fingerprint"]},
                "checkpoint": None if training else trainer.ckpt_path,
                "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
            }
        )
        if training:
            results["epoch"] = trainer.current_epoch
            results["step"] = trainer.global_step
            results["seconds"] = round(time.monotonic() - self.started, 1)
        # In float64, as computed (loggers get float32). JSON has no NaN: a metric without a value is null.
        results[split] = {k: None if math.isnan(v) else v for k, v in pl_module.results[split].items()}
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        temporary.replace(file)
