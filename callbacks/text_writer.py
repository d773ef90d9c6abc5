"""What `train.py predict` leaves of language models and text classifiers: a line of JSON for each text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer

from callbacks.prediction_folder import PredictionFolder, folder_of, of_all_processes

EMBEDDING = "embedding"


class TextWriter(PredictionFolder):
    """Writes `predictions/texts.jsonl` in the run directory, in the order of the texts.

    Vectors of tokens, where they were asked for, go to `predictions/embeddings.npz`: an array (tokens, hidden) for
    each text, called by its index; the line of the text then names its `pieces`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[int, dict[str, Any]] = {}  # by index

    def keep(self, found: dict[str, Any], data: Any, folder: Path) -> None:
        """Remember a result."""
        self.results[found["index"]] = dict(found)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of all processes."""
        merged = of_all_processes(trainer, self.results)
        self.results = {}
        if not trainer.is_global_zero:
            return
        folder = folder_of(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        vectors = {}
        for index, result in merged.items():
            if EMBEDDING in result:
                found = result.pop(EMBEDDING)
                result["pieces"], vectors[str(index)] = found.tokens, found.vectors
        file = folder / "texts.jsonl"
        lines = [json.dumps(result, ensure_ascii=False, default=_plain) + "\n" for result in merged.values()]
        file.write_text("".join(lines), "utf-8")
        if vectors:
            np.savez(folder / "embeddings.npz", **vectors)
        print(f"Results for {len(merged)} texts are in {file}")


def _plain(value: Any) -> Any:
    """Arrays and numbers of NumPy as JSON takes them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON knows")
