"""What a language model writes while it trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from callbacks.loggers import SafeWandbLogger
from models.language.language_model import IGNORE
from models.language.predictors import MASK, CausalPredictor

Table = tuple[list[str], list[list[str]]]  # columns and rows


class TextSamples(Callback):
    """Texts after each validation: what a causal model goes on with, or what a masked one puts into masked places.

    They go to `samples/val_step_<n>.txt` in the run directory (`val.txt` where a checkpoint is validated), to a table
    in W&B, and to TensorBoard. Nothing is drawn from the training's random streams.

    Args:
        num_texts: number of texts, where `prompts` are not given: beginnings from the validation split, evenly spaced.
        prompts: what a causal model has to go on with.
        prompt_tokens: length of the beginnings.
        max_new_tokens: length of the continuations.
        temperature: 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest tokens whose probabilities sum to this only.
        every_n_validations: write after every n-th validation only.
    """

    def __init__(
        self,
        num_texts: int = 4,
        prompts: list[str] | None = None,
        prompt_tokens: int = 16,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        every_n_validations: int = 1,
    ) -> None:
        self.num_texts = num_texts
        self.prompts = prompts
        self.prompt_tokens = prompt_tokens
        self.options = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p
        }  # fmt: skip
        self.every_n_validations = every_n_validations
        self.validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        if trainer.sanity_checking:
            return
        self.validations += 1
        training = trainer.state.fn == TrainerFn.FITTING
        if not trainer.is_global_zero or (training and self.validations % self.every_n_validations):
            return
        data = trainer.datamodule
        columns, rows = self._continued(pl_module, data) if self._is_causal(data) else self._filled(pl_module, data)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"val_step_{trainer.global_step:07d}" if training else "val"
        text = "\n\n".join("\n".join(f"[{c}] {t}" for c, t in zip(columns, row, strict=True)) for row in rows)
        (folder / f"{name}.txt").write_text(text + "\n", "utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, SafeWandbLogger):
                logger.log_texts("val/texts", columns, rows, trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("val/texts", _markdown(columns, rows), trainer.global_step)

    @staticmethod
    def _is_causal(data: Any) -> bool:
        return "targets" in data.dataset("val")[0, 0]

    def _continued(self, pl_module: LightningModule, data: Any) -> Table:
        predictor = CausalPredictor(pl_module.network, data.tokenizer)
        prompts = self.prompts
        if prompts is None:
            dataset = data.dataset("val")
            places = [i * len(dataset) // self.num_texts for i in range(min(self.num_texts, len(dataset)))]
            samples = [dataset[0, place] for place in places]
            prompts = [self._beginning(data, sample) for sample in samples]
        with _autocast(pl_module):
            texts = predictor.generate(prompts, seed=0, **self.options)
        return ["prompt", "text"], [[prompt, text] for prompt, text in zip(prompts, texts, strict=True)]

    def _beginning(self, data: Any, sample: dict[str, Any]) -> str:
        known = sample["input_ids"][: max(int((sample["targets"] != IGNORE).sum()), 1)]
        return data.tokenizer.decode(known[: self.prompt_tokens].tolist())

    @torch.no_grad()
    def _filled(self, pl_module: LightningModule, data: Any) -> Table:
        dataset = data.dataset("val")
        places = [i * len(dataset) // self.num_texts for i in range(min(self.num_texts, len(dataset)))]
        batch = data.collate([dataset[0, place] for place in places])
        on_device = {k: v.to(pl_module.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        network, was_training = pl_module.network, pl_module.network.training
        try:
            with _autocast(pl_module):
                found = network.eval().forward(on_device)[0]["masked_logits"].argmax(-1).cpu()
        finally:
            network.train(was_training)
        counted = batch["masked_labels"] != IGNORE
        rows, start = [], 0
        for row, (ids, places_of_row, labels) in enumerate(
            zip(batch["input_ids"], batch["masked_positions"], batch["masked_labels"], strict=True)
        ):
            here, wanted = places_of_row[counted[row]], labels[counted[row]]
            guesses = found[start : start + len(here)]
            start += len(here)
            length = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else len(ids)
            versions = [_put(ids, here, tokens)[:length] for tokens in (None, guesses, wanted)]
            rows.append([_joined(data.tokenizer, version) for version in versions])
        return ["masked", "filled in", "truth"], rows


def _put(ids: Tensor, places: Tensor, tokens: Tensor | None) -> list[int]:
    """Ids with tokens in some places; -1 where none are given."""
    result = ids.clone()
    result[places] = -1 if tokens is None else tokens
    return result.tolist()


def _joined(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, -1 being a masked place."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token < 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return f" {MASK} ".join(tokenizer.decode(part) if part else "" for part in parts)


def _autocast(pl_module: LightningModule) -> Any:
    return pl_module.trainer.precision_plugin.forward_context()


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[cell.replace("\n", "<br>").replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
