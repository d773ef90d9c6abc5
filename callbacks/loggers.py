"""Loggers that survive resumption and never stop a training."""

import csv
import logging
import math
import netrc
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np
import wandb
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


class AppendingCSVLogger(Logger):
    """`<save_dir>/metrics.csv`, one row per call; a resumed run continues the file.

    Rows that the resumed run writes again (it goes back to its last checkpoint) replace the old ones; a metric that
    appears late adds a column. (Lightning's CSVLogger deletes the file.)

    Args:
        save_dir: directory of the file; train.py fills in the run directory.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._rows: list[dict[str, str]] | None = None
        self._columns: list[str] = []
        self._trained = False

    @property
    def name(self) -> str:
        """For Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """For Lightning."""
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
        row = {"step": str(step)} | {name: repr(float(value)) for name, value in metrics.items()}
        if self._rows is None:
            self._read()
        rewrite = False
        if not self._trained and any(name.startswith("train/") for name in metrics):
            self._trained = True
            kept = [old for old in self._rows if not old["step"] or int(old["step"]) < step]
            rewrite = len(kept) < len(self._rows)
            self._rows = kept
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if new or rewrite:
            with open(self.file, "w", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(self._rows)
        else:
            with open(self.file, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def _read(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._rows = []
        if self.file.exists():
            with open(self.file, newline="") as file:
                reader = csv.DictReader(file)
                self._rows = [{name: value for name, value in row.items() if value} for row in reader]
                self._columns = list(reader.fieldnames or [])
            for row in self._rows:
                row.setdefault("step", "")


class SafeWandbLogger(Logger):
    """W&B that never asks, never blocks and never stops a training.

    Online if there is an API key and the server answers a connection within two seconds, offline otherwise (`wandb
    sync` uploads later); decided before W&B starts. Any error of W&B is reported once and ends logging,
    not the training. The id of the run is kept in `<save_dir>/wandb_run_id`: a resumed run continues the same W&B run.

    Args:
        project: of W&B.
        save_dir: directory of W&B's files; train.py fills in the run directory.
        mode: `online`, `offline` or `disabled`; None decides. The environment's WANDB_MODE comes before that.
        run_name: None is the name of the run directory.
        entity: user or team.
        tags: of the run.
    """

    def __init__(
        self,
        project: str = "triptych",
        save_dir: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        run_name: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.project = project
        self._save_dir = save_dir
        self.mode = mode
        self.run_name = run_name
        self.entity = entity
        self.tags = tags
        self._run: Any = None
        self._failed = False

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """The id of the W&B run, kept from start to resumption."""
        file = Path(self._save_dir or ".") / "wandb_run_id"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(uuid.uuid4().hex[:8])
        return file.read_text().strip()

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
        self._try(lambda run: run.log({**metrics, "trainer/global_step": step}))

    @rank_zero_only
    def log_pictures(self, key: str, pictures: list[dict[str, Any]], step: int) -> None:
        """Pictures whose boxes can be switched on and off in the browser.

        Args:
            key: name of the panel.
            pictures: `image` (H, W, 3) uint8 and optionally `boxes`, as `wandb.Image` takes them.
            step: of the training.
        """

        def send(run: Any) -> None:
            # The browser takes the pictures of a panel to be of one size: pad at the right and bottom.
            height, width = np.max([picture["image"].shape[:2] for picture in pictures], axis=0)
            images = []
            for picture in pictures:
                canvas = np.zeros((height, width, 3), np.uint8)
                canvas[: picture["image"].shape[0], : picture["image"].shape[1]] = picture["image"]
                images.append(wandb.Image(canvas, boxes=picture.get("boxes")))
            run.log({key: images, "trainer/global_step": step})

        self._try(send)

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
            log.warning("W&B stopped logging (%s: %s); the training goes on", type(error).__name__, error)

    def _start(self) -> Any:
        mode = os.environ.get("WANDB_MODE") or self.mode or decide_mode()
        folder = Path(self._save_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            tags=self.tags,
            name=self.run_name or folder.name,
            dir=str(folder),
            id=self.version,
            resume="allow",
            mode=mode,
            settings=wandb.Settings(init_timeout=30, quiet=mode == "offline"),
        )
        run.define_metric("*", step_metric="trainer/global_step")
        return run


def decide_mode() -> str:
    """`online` with an API key and a server that answers, else `offline`."""
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        known = netrc.netrc().authenticators(server.hostname) is not None  # where `wandb login` keeps the key
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        log.info("W&B: no API key (`wandb login` sets one), logging offline")
        return "offline"
    try:
        socket.create_connection((server.hostname, server.port or 443), timeout=2).close()
    except OSError as error:
        log.info("W&B: %s does not answer (%s), logging offline", server.hostname, error)
        return "offline"
    return "online"


def wandb_boxes(
    boxes: np.ndarray, labels: np.ndarray, class_names: list[str], scores: np.ndarray | None = None
) -> dict[str, Any]:
    """Boxes (n, 4) XYXY in pixels as one entry of `wandb.Image(boxes=...)`."""
    entries = []
    for i, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        entry = {
            "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
            "domain": "pixel",
            "class_id": label,
            "box_caption": class_names[label],
        }
        if scores is not None and math.isfinite(scores[i]):
            entry["scores"] = {"score": float(scores[i])}
            entry["box_caption"] += f" {scores[i]:.2f}"
        entries.append(entry)
    return {"box_data": entries, "class_labels": dict(enumerate(class_names))}
