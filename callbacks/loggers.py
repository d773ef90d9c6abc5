"""Loggers that survive resumption and never stop a training."""

import csv
import io
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from callbacks.wandb_mode import decide_mode

log = logging.getLogger(__name__)


class AppendingCSVLogger(Logger):
    """`<save_dir>/metrics.csv`, one row per call; a resumed run continues the file.

    A resumed run goes back to its last checkpoint: what it logs again replaces the old rows. A metric that appears late
    adds a column. (Lightning's CSVLogger deletes the file.) A file that cannot be written is warned of once, and
    completed as soon as it can.

    Args:
        save_dir: directory of the file; train.py fills in the run directory.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._rows: list[dict[str, str]] | None = None  # None: the file was not read yet
        self._old = 0  # how many of them are of an earlier process
        self._columns: list[str] = []
        self._complete = False  # the file holds these rows and no others
        self._trained = False
        self._warned = False

    @property
    def name(self) -> str:
        """For Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """For Lightning, whose progress bar would show it."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """Directory of the file."""
        return self._save_dir

    @property
    def file(self) -> Path:
        """The table."""
        return Path(self._save_dir or ".") / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row."""
        row = {"step": "" if step is None else str(step)} | {name: repr(float(v)) for name, v in metrics.items()}
        try:
            if self._rows is None:
                self._read()
            self._drop_repeated(row)
            self._rows.append(row)
            new = [name for name in row if name not in self._columns]
            self._columns += new
            self._write(row if self._complete and not new else None)
        except (OSError, csv.Error) as error:
            self._complete = False
            if not self._warned:
                log.warning("%s: cannot be written (%s); the training goes on", self.file, error)
            self._warned = True

    def _read(self) -> None:
        """Rows of an earlier process, without a last one that was cut off when it was killed."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = self.file.read_text(errors="replace") if self.file.exists() else ""
        whole = text[: text.rfind("\n") + 1].replace("\0", "")
        reader = csv.DictReader(io.StringIO(whole))
        self._columns = [name for name in reader.fieldnames or [] if name]
        self._rows = [{name: row[name] for name in self._columns if row[name]} for row in reader]
        self._old = len(self._rows)
        self._complete = bool(text) and whole == text

    def _drop_repeated(self, row: dict[str, str]) -> None:
        """Forget old rows of the same metrics at the same step, and all later ones once the training goes on."""
        if self._trained or not row["step"]:
            return
        self._trained = any(name.startswith("train/") for name in row)
        metrics = row.keys() - {"step", "epoch"}

        def repeated(old: dict[str, str]) -> bool:
            if not old.get("step", "").isdigit():
                return False
            ahead = int(old["step"]) - int(row["step"])
            return (ahead >= 0 and self._trained) or (ahead == 0 and not metrics.isdisjoint(old))

        kept = [old for old in self._rows[: self._old] if not repeated(old)]
        if len(kept) < self._old:
            self._rows[: self._old] = kept
            self._old = len(kept)
            self._complete = False

    def _write(self, row: dict[str, str] | None) -> None:
        """Append a row, or write all anew (aside and renamed, so that a kill leaves the old file)."""
        if row is not None:
            with open(self.file, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
            return
        temporary = self.file.with_suffix(".unfinished")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.file)
        self._complete = True


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard in `<save_dir>/tensorboard`; `tensorboard --logdir runs` shows all runs.

    Args:
        save_dir: train.py fills in the run directory (Lightning's own logger does not let it be left out).
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__(save_dir or ".", name="tensorboard", version="")


class SafeWandbLogger(Logger):
    """W&B that never asks, never blocks for long and never stops a training.

    Online if there is an API key and the server answers, offline otherwise (`wandb sync` uploads later); decided before
    W&B starts. Any error of W&B is reported once and ends logging, not the training. The id of the run is kept in
    `<save_dir>/wandb_run_id`: a resumed run continues the same W&B run.

    Args:
        project: of W&B.
        save_dir: directory of W&B's files; train.py fills in the run directory.
        mode: `online`, `offline` or `disabled`; None decides. The environment's WANDB_MODE comes before that.
        run_name: None is the name of the run directory.
        entity: user or team.
        tags: of the run.
        finish_timeout: seconds that the end of a run waits for the upload; what is left can be uploaded by `wandb
            sync`. Needs a W&B that knows this setting (0.28 does), an older one waits until all is uploaded.
    """

    def __init__(
        self,
        project: str = "triptych",
        save_dir: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        run_name: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
        finish_timeout: float = 120.0,
    ) -> None:
        super().__init__()
        self.project = project
        self._save_dir = save_dir
        self.mode = mode
        self.run_name = run_name
        self.entity = entity
        self.tags = tags
        self.finish_timeout = finish_timeout
        self._run: Any = None
        self._failed = False
        self._row, self._step = -1, -1  # of the last row offline

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """For Lightning, whose progress bar would show it."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """Directory of W&B's files."""
        return self._save_dir

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The whole configuration."""
        self._try(lambda run: run.config.update(params, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Numbers at a step."""
        self._try(lambda run: self._log(run, metrics, step))

    @rank_zero_only
    def log_pictures(self, key: str, pictures: list[dict[str, Any]], step: int) -> None:
        """Pictures whose boxes and masks can be switched on and off in the browser.

        Args:
            key: name of the panel.
            pictures: `image` (H, W, 3) uint8 and optionally `boxes` and `masks`, as `wandb.Image` takes them.
            step: of the training.
        """

        def send(run: Any) -> None:
            # The browser takes the pictures of a panel to be of one size: pad at the right and bottom.
            height, width = np.max([picture["image"].shape[:2] for picture in pictures], axis=0)
            images = []
            for picture in pictures:
                canvas = np.zeros((height, width, 3), np.uint8)
                h, w = picture["image"].shape[:2]
                canvas[:h, :w] = picture["image"]
                masks = {
                    name: {**mask, "mask_data": np.pad(mask["mask_data"], ((0, height - h), (0, width - w)))}
                    for name, mask in picture.get("masks", {}).items()
                }
                images.append(wandb.Image(canvas, boxes=picture.get("boxes"), masks=masks or None))
            self._log(run, {key: images}, step)

        self._try(send)

    @rank_zero_only
    def log_texts(self, key: str, columns: list[str], rows: list[list[str]], step: int) -> None:
        """A table of texts.

        Args:
            key: name of the panel.
            columns: what stands in each column.
            rows: of the table.
            step: of the training.
        """
        self._try(lambda run: self._log(run, {key: wandb.Table(columns=columns, data=rows)}, step))

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """Finish the W&B run, so that its files are complete; once, after training, validation and test."""
        if self._run is not None:
            self._try(lambda run: run.finish(exit_code=exit_code))
            self._run = None

    def _try(self, action: Callable[[Any], Any]) -> None:
        if self._failed:
            return
        try:
            if self._run is None:
                self._run = self._start()
            action(self._run)
        except Exception as error:  # whatever W&B does, the training goes on
            self._failed = True
            log.warning(
                "W&B stopped logging, the training goes on (%s: %s)", type(error).__name__, " ".join(str(error).split())
            )

    def _log(self, run: Any, values: dict[str, Any], step: int | None) -> None:
        row = None
        if run.offline:
            # Online, W&B goes on counting rows where an interrupted run was. Offline it counts each part from 0, and
            # the rows of one part would meet those of the other when they are uploaded: number them by step.
            if step != self._step:
                self._row, self._step = max(step or 0, self._row + 1), step
            row = self._row
        run.log({**values, "trainer/global_step": step}, step=row)

    def _start(self) -> Any:
        mode = decide_mode(self.mode)
        folder = Path(self._save_dir or ".").resolve()  # W&B's service may run in another directory
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "wandb_run_id"
        identity = file.read_text().strip() if file.exists() else ""
        if not identity:
            identity = uuid.uuid4().hex[:8]
            file.write_text(identity)
        limits = {"finish_timeout": self.finish_timeout, "finish_timeout_raises": True}
        known = {name: value for name, value in limits.items() if name in wandb.Settings.model_fields}
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            tags=self.tags,
            name=self.run_name or folder.name,
            dir=str(folder),
            id=identity,
            resume="allow",
            mode=mode,
            settings=wandb.Settings(init_timeout=30, silent=mode == "offline", **known),
        )
        run.define_metric("*", step_metric="trainer/global_step")
        return run
