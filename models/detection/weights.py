"""Start a detector from weights that somebody trained: published ones of other programs and Triptych's own."""

import logging
import os
from collections.abc import Sequence

from torch import Tensor

from errors import UserError
from models.checkpoint_file import local_file
from models.detection.coco_classes import CLASSES_BY_NUMBER, COCO_CLASSES
from models.detection.detector import Detector

log = logging.getLogger(__name__)


def load_weights(
    network: Detector,
    source: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int | str] | None = None,
    sha256: str | None = None,
) -> None:
    """Load trained weights into a detector, in place.

    If the file has other classes, the class predictor's rows are carried over for the classes that both know and the
    other rows keep their fresh values; a warning says which. Classes are recognised by name, or, where the network's
    have none, by COCO category id. Files of other programs do not name their classes: see `CLASSES_BY_NUMBER`. Which
    layouts of other programs a detector can read, it says itself (`Detector.published_state`, `read_published`).

    Args:
        network: what is filled.
        source: file or http(s) URL of published weights or of a checkpoint of Triptych. A download is kept in
            torch.hub's cache.
        class_names: of the network's classes in order.
        category_ids: of the network's classes in order, as in the dataset's file.
        sha256: what the downloaded file must hash to, or the first characters of it.

    Raises:
        UserError: the source cannot be had or read, or does not fit the network.
    """
    own = network.state_dict()
    state, names = network.read_published(local_file(source, sha256))
    if not state.keys() <= own.keys():
        try:
            state = network.published_state(state)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
    state = _with_own_counters(state, own)
    fits_class = set(network.class_parameters())
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unknown here" for key in state if key not in own]
    problems += [
        f"{key} is {_shape(state[key])} there and {_shape(value)} here"
        for key, value in own.items()
        if key in state and key not in fits_class and state[key].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"the weights {source} do not fit this {type(network).__name__} ({problems[0]}, and {len(problems) - 1} "
            f"more): choose the network and variant that they were trained with"
        )
    reordered = bool(names and class_names) and list(names) != list(class_names)
    if reordered or any(state[key].shape != own[key].shape for key in fits_class):
        names = names or _guess_names(network, state)
        rows = _known_classes(names, class_names, category_ids)
        for key in fits_class:
            state[key] = _carry_over(state[key], own[key], len(names), network.num_classes, rows, source)
        kept = ", ".join(names[row] for row in rows.values()) or "none"
        log.warning(
            "%s knows %d classes and the network %d: rows of %s replaced by fresh ones, except of the classes: %s",
            source,
            len(names),
            network.num_classes,
            " and ".join(sorted(fits_class)),
            kept,
        )
    network.load_state_dict(state)


def _with_own_counters(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Single numbers that count (batches, images) and that only one side keeps: not the file's, the network's as is."""
    counters = {key: value for key, value in own.items() if value.ndim == 0 and key not in state}
    return {key: value for key, value in state.items() if value.ndim > 0 or key in own} | counters


def _guess_names(network: Detector, state: dict[str, Tensor]) -> list[str]:
    """The classes of a file that does not name them, as many as its predictor has rows for ("" where unknown)."""
    key = network.class_parameters()[0]
    number = len(state[key]) * network.num_classes // len(network.state_dict()[key])
    return CLASSES_BY_NUMBER.get(number, [""] * number)


def _known_classes(
    names: Sequence[str], class_names: Sequence[str] | None, category_ids: Sequence[int | str] | None
) -> dict[int, int]:
    """Row of the network -> row of the checkpoint."""
    if class_names is not None:
        rows = {name: row for row, name in enumerate(names) if name}
        return {row: rows[name] for row, name in enumerate(class_names) if name in rows}
    if category_ids is not None and set(names) >= set(COCO_CLASSES) - {""}:
        by_id = {id_: names.index(name) for id_, name in enumerate(COCO_CLASSES, 1) if name}
        return {row: by_id[id_] for row, id_ in enumerate(category_ids) if id_ in by_id}
    return {}


def _carry_over(
    old: Tensor, fresh: Tensor, old_classes: int, classes: int, rows: dict[int, int], source: str | os.PathLike
) -> Tensor:
    """Rows of the same classes from the old predictor (anchors * classes, ...) in a copy of the fresh one."""
    if old_classes == 0 or len(old) * classes != len(fresh) * old_classes or old.shape[1:] != fresh.shape[1:]:
        raise UserError(
            f"the class predictor of {source} is {_shape(old)} and does not fit one of {_shape(fresh)}: "
            f"choose the network that it was trained with"
        )
    result = fresh.clone()
    by_class = result.view(-1, classes, *fresh.shape[1:])  # (anchors, classes, ...)
    by_class[:, list(rows)] = old.view(-1, old_classes, *old.shape[1:])[:, list(rows.values())]
    return result


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
