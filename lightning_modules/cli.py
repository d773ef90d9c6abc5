"""LightningCLI with what a research template needs on top: run directories, plain errors, a final test."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from callbacks.checkpoint_io import VerifiedCheckpointIO, resolve_checkpoint
from callbacks.finite_loss import FiniteLoss
from callbacks.loader_state import LoaderState
from callbacks.loggers import SafeWandbLogger
from callbacks.random_state import RandomState
from callbacks.run_directory import RunDirectory
from errors import UserError

RUNS = Path("runs")
LOGGERS = [
    {"class_path": "callbacks.loggers.AppendingCSVLogger"},
    {"class_path": "callbacks.loggers.SafeWandbLogger", "init_args": {"project": "triptych"}},
]


class TriptychCLI(LightningCLI):
    """`[fit|validate|test|predict] --config FILE ...`; without a subcommand, `fit`.

    On top of LightningCLI:

    - what the data knows is linked to the model (`num_classes`, `vocab_size`), and the seed to the data;
    - a run directory is chosen (`--run_dir`, default `runs/<config name>/<time>`), given to the loggers and shared
      by all processes; `--ckpt_path last` finds the newest run of the configuration and goes on in its directory;
    - after `fit` the best checkpoint is validated and tested;
    - the configuration and the command line win over the hyperparameters of a checkpoint.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # RunDirectory writes it
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},  # the data modules shard exactly themselves
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={name: {"exit_on_error": False} for name in self.subcommands()} | {"exit_on_error": False},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments and links beyond those of LightningCLI."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of the run (default: runs/<config name>/<time>)",
        )
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults({"trainer.logger": LOGGERS})
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        # What the data knows, given to the network if it asks for it.
        for name in ("num_classes", "vocab_size", "encoder.init_args.vocab_size"):
            source = f"data.{name.rpartition('.')[2]}"
            parser.link_arguments(source, f"model.init_args.network.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        """Parse `args` (default: `sys.argv[1:]`), `fit` being the default subcommand."""
        args = sys.argv[1:] if args is None else [str(arg) for arg in args]
        if not args or args[0] not in {*self.subcommands(), "-h", "--help"}:
            args = ["fit", *args]
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UserError(" ".join(str(error).split())) from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let a checkpoint's hyperparameters win over the configuration (since 2.5.5)."""

    def before_instantiate_classes(self) -> None:
        """Choose the run directory and the checkpoint, and tell the loggers where to write."""
        config = self.config[self.subcommand]
        name = Path(str(config.config[0])).stem if config.config else "run"
        resumed = config.ckpt_path
        if config.run_dir is not None:
            self.run_dir = Path(config.run_dir)
        elif resumed in ("last", "best"):
            self.run_dir = newest_run(RUNS / name)
        elif resumed is not None and Path(resumed).parent.name == "checkpoints":
            self.run_dir = Path(resumed).parent.parent
        else:
            self.run_dir = RUNS / name / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        if resumed is not None:
            config.ckpt_path = str(resolve_checkpoint(resumed, self.run_dir))
        elif self.subcommand == "fit" and (self.run_dir / "checkpoints").exists():
            raise UserError(
                f"{self.run_dir} already holds a run: go on with it by --ckpt_path last, or name another --run_dir"
            )
        elif self.subcommand == "predict" and not config.model.init_args.get("weights"):
            raise UserError("predict needs trained weights: name a checkpoint with --ckpt_path")
        # As plain types, and before the directory and the loggers' places are filled in: reusable as it stands.
        parser = self._parser(self.subcommand)
        self.plain_config = yaml.safe_load(parser.dump(config, skip_none=False))
        self.plain_config.pop("run_dir", None)
        self.plain_config.pop("ckpt_path", None)
        if "weights_only" in config:
            config.weights_only = True
        config.trainer.default_root_dir = str(self.run_dir)
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in loggers:
            if logger and logger is not True and logger.init_args.get("save_dir", "") is None:
                logger.init_args.save_dir = str(self.run_dir)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; an error in one of their constructors is shown as itself.

        jsonargparse wraps whatever a constructor raises into a message about types: unwrap it.
        """
        try:
            super().instantiate_classes()
        except Exception as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if cause is error:
                raise
            raise cause from None
        with contextlib.suppress(AttributeError):  # a task without pictures has no image size
            if self.datamodule.image_size is None:
                self.datamodule.image_size = self.model.image_size

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with what every run has; the run directory comes first, since others write into it."""
        trainer = super().instantiate_trainer(**kwargs)
        first = RunDirectory(self.run_dir, self.plain_config)
        trainer.callbacks[:0] = [first, RandomState(), LoaderState(), FiniteLoss()]
        trainer.strategy.checkpoint_io = VerifiedCheckpointIO()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run, and close the W&B run whatever happens: Lightning leaves it open between fit and test."""
        exit_code = 1
        try:
            super()._run_subcommand(subcommand)
            exit_code = 0
        finally:
            for logger in self.trainer.loggers:
                if isinstance(logger, SafeWandbLogger):
                    logger.close(exit_code)

    def after_fit(self) -> None:
        """Validate and test the best checkpoint (or, without a validation split, the final weights)."""
        if self.trainer.interrupted or self.trainer.received_sigterm:
            return
        best = next(c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
        self.model.after_fit(best or None)
        options = {"datamodule": self.datamodule, "ckpt_path": best or None, "weights_only": True}
        if "val" in self.datamodule.splits and best:
            self.trainer.validate(self.model, **options)
        if "test" in self.datamodule.splits:
            self.trainer.test(self.model, **options)
        print(f"Run directory: {self.run_dir}")


def newest_run(folder: Path) -> Path:
    """The run below `folder` that wrote a checkpoint last.

    Raises:
        UserError: there is no run with a checkpoint.
    """
    runs = [path.parent for path in folder.glob("*/checkpoints") if any(path.iterdir())]
    if not runs:
        raise UserError(f"no run with a checkpoint below {folder}: leave out --ckpt_path to start one")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in (run / "checkpoints").iterdir()))
