"""BERT and GPT-2 side by side with transformers: `python -m benchmarks.language [--json] [--quick] [--device cuda]`.

Both sides hold the same random weights and see the same batches. What they compute is compared first, in float32
without dropout; then rounds alternate, so that whatever else the machine does falls on both, and medians and their
ratios are reported. Peak memory is the allocator's (GPU), over what was held before the contender was built.

- bert pretraining: forward, both losses, backward, clipping, AdamW, dropout 0.1; 15 % of the tokens are masked.
- bert pretraining, padded: the same with rows of random lengths, a quarter of the width at least.
- bert inference, and padded: hidden vectors of all tokens.
- gpt2 training: forward, loss, backward, clipping, AdamW, dropout 0.1.
- gpt2 generation: the likeliest tokens, one by one, with a cache of keys and values.

On a GPU the networks are BERT base and GPT-2 (124M), on a CPU smaller ones. Both use PyTorch's scaled dot product
attention and the same fused optimiser.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measure import Column, Work, alternate, device_name, measured, medians, report, seconds, text
from models.language import BERT, GPT
from models.language.generation import generate
from models.language.language_model import IGNORE, LanguageModel
from models.language.transformers_weights import bert_to_transformers, gpt_to_transformers

TASKS = (
    "bert pretraining", "bert pretraining, padded", "bert inference", "bert inference, padded", "gpt2 training",
    "gpt2 generation",
)  # fmt: skip
MASKED_SHARE = 0.15
DROPOUT = 0.1


@dataclass
class Size:
    """A network, and the batches that it sees."""

    layers: int
    heads: int
    hidden_size: int
    vocab_size: int
    rows: int
    length: int


SIZES = {
    ("bert", "cuda"): Size(12, 12, 768, 30_522, 64, 128),
    ("gpt2", "cuda"): Size(12, 12, 768, 50_257, 8, 1024),
    ("bert", "cpu"): Size(4, 4, 256, 30_522, 8, 128),
    ("gpt2", "cpu"): Size(4, 4, 256, 50_257, 2, 256),
}
PROMPT = {"cuda": 32, "cpu": 16}
NEW_TOKENS = {"cuda": 128, "cpu": 48}


@dataclass
class Contender:
    """A network, ours or theirs, and what is done with it.

    Attributes:
        network: on the device.
        outputs: what is compared: of a training step the loss, else hidden vectors or tokens.
        work: what is timed.
    """

    network: nn.Module
    outputs: Callable[[], Tensor]
    work: Callable[[], object]


class Bench:
    """The contenders of one task.

    Args:
        task: of `TASKS`.
        args: of the command line.
    """

    def __init__(self, task: str, args: argparse.Namespace) -> None:
        self.task = task
        self.args = args
        self.family = task.split()[0]
        self.size = SIZES[self.family, args.device]
        if args.rows:
            self.size.rows = args.rows
        self.trains = "training" in task
        torch.manual_seed(0)
        self.state = self._ours().state_dict()
        self.batch = {key: value.to(args.device) for key, value in self._batch().items()}

    @property
    def tokens(self) -> int:
        """Tokens of a round, without padding."""
        if "generation" in self.task:
            return self.size.rows * NEW_TOKENS[self.args.device]
        return int(self.batch["attention_mask"].sum())

    def contender(self, name: str) -> Contender:
        """`triptych` or `transformers`, either also as `..., compiled`."""
        network = self._ours() if name.startswith("triptych") else self._theirs()
        self._load(network)
        network = network.to(self.args.device)
        if "generation" in self.task or not self.trains:
            network.eval()
            if self.args.precision == "bf16" and "generation" in self.task:
                network = network.to(torch.bfloat16)
        else:
            network.train()
        if name.endswith("compiled"):
            network.compile()
        run = self._our_run if name.startswith("triptych") else self._their_run
        if not self.trains:
            infer = torch.inference_mode()(lambda: run(network))
            return Contender(network, infer, self._with_autocast(infer))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        autocast = self._autocast

        def step() -> None:
            with autocast():
                loss = run(network)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def loss_without_dropout() -> Tensor:
            network.eval()
            with torch.no_grad():
                loss = run(network)
            network.train()
            return loss

        return Contender(network, loss_without_dropout, step)

    def _ours(self) -> LanguageModel:
        size = self.size
        arguments = {
            "vocab_size": size.vocab_size, "layers": size.layers, "heads": size.heads, "hidden_size": size.hidden_size,
            "dropout": DROPOUT, "attention_dropout": DROPOUT,
        }  # fmt: skip
        if self.family == "gpt2":
            return GPT(**arguments, context_length=max(size.length, 1024))
        return BERT(**arguments, context_length=512)

    def _theirs(self) -> nn.Module:
        import transformers

        size = self.size
        if self.family == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=size.vocab_size, n_positions=max(size.length, 1024), n_embd=size.hidden_size,
                n_layer=size.layers, n_head=size.heads, attn_pdrop=DROPOUT, resid_pdrop=DROPOUT, embd_pdrop=DROPOUT,
                bos_token_id=0, eos_token_id=None, attn_implementation="sdpa",
            )  # fmt: skip
            return transformers.GPT2LMHeadModel(config)
        config = transformers.BertConfig(
            vocab_size=size.vocab_size, hidden_size=size.hidden_size, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, intermediate_size=4 * size.hidden_size, attn_implementation="sdpa",
            hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT,
        )  # fmt: skip
        return transformers.BertForPreTraining(config)

    def _load(self, network: nn.Module) -> None:
        if isinstance(network, LanguageModel):
            network.load_state_dict(self.state)
            return
        convert = gpt_to_transformers if self.family == "gpt2" else bert_to_transformers
        missing, unknown = network.load_state_dict(convert(self.state), strict=False)
        assert not unknown and not [key for key in missing if not key.endswith("position_ids")], (missing, unknown)

    def _batch(self) -> dict[str, Tensor]:
        size = self.size
        generator = torch.Generator().manual_seed(0)
        shape = (size.rows, size.length)
        ids = torch.randint(5, size.vocab_size, shape, generator=generator)
        lengths = torch.full((size.rows,), size.length)
        if "padded" in self.task:
            lengths = torch.randint(size.length // 4, size.length + 1, (size.rows,), generator=generator)
        mask = torch.arange(size.length) < lengths[:, None]
        ids = ids * mask
        if self.family == "gpt2":
            return {"input_ids": ids, "attention_mask": mask, "targets": _shifted(ids)}
        most = max(1, round(MASKED_SHARE * size.length))
        positions = torch.zeros(size.rows, most, dtype=torch.long)
        masked_labels = torch.full((size.rows, most), IGNORE)
        labels = torch.full(shape, IGNORE)
        for row, length in enumerate(lengths.tolist()):
            places = torch.randperm(length, generator=generator)[: max(1, round(MASKED_SHARE * length))].sort().values
            truth = torch.randint(5, size.vocab_size, (len(places),), generator=generator)
            positions[row, : len(places)], masked_labels[row, : len(places)] = places, truth
            labels[row, places] = truth
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": (torch.arange(size.length) >= lengths[:, None] // 2).long() * mask,
            "masked_positions": positions,
            "masked_labels": masked_labels,
            "next_sentence_label": torch.randint(2, (size.rows,), generator=generator),
            "labels": labels,  # as transformers takes them
        }

    def _our_run(self, network: LanguageModel) -> Tensor:
        batch = self.batch
        if "generation" in self.task:
            prompts = batch["input_ids"][:, : PROMPT[self.args.device]]
            return torch.stack(generate(network, prompts, max_new_tokens=NEW_TOKENS[self.args.device], temperature=0))
        if self.trains:
            outputs, _ = network(batch)
            return sum(term.value() for term in network.loss_terms(outputs, batch).values())
        return network.encode(batch)

    def _their_run(self, network: nn.Module) -> Tensor:
        batch = self.batch
        if "generation" in self.task:
            prompts = batch["input_ids"][:, : PROMPT[self.args.device]]
            return network.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0,
                max_new_tokens=NEW_TOKENS[self.args.device], min_new_tokens=NEW_TOKENS[self.args.device],
            )  # fmt: skip
        if self.family == "gpt2":
            return network(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        inputs = {"input_ids": batch["input_ids"], "token_type_ids": batch["token_type_ids"]}
        if "padded" in self.task:  # on whole rows they are faster without a mask
            inputs["attention_mask"] = batch["attention_mask"].long()
        if self.trains:
            return network(**inputs, labels=batch["labels"], next_sentence_label=batch["next_sentence_label"]).loss
        return network.bert(**inputs).last_hidden_state * batch["attention_mask"][..., None]

    def _autocast(self) -> AbstractContextManager:
        if self.args.precision == "bf16":
            return torch.autocast(self.args.device, torch.bfloat16)
        return nullcontext()

    def _with_autocast(self, work: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with self._autocast():
                return work()

        return run


def _shifted(ids: Tensor) -> Tensor:
    return nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE)


def difference(task: str, ours: Tensor, theirs: Tensor) -> float:
    """How far apart two results are: the share of tokens that differ, or the largest difference, relative to the scale.

    Raises:
        RuntimeError: they are no results of the same network.
    """
    if "generation" in task:
        apart = (ours != theirs).float().mean().item()
        limit = 0.5  # after one near tie that falls the other way a text goes on differently
    else:
        apart = ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()
        limit = 1e-3
    if not apart <= limit:
        raise RuntimeError(f"{task}: the two sides differ by {apart:.2g}, which is no rounding")
    return apart


def compare(task: str, args: argparse.Namespace) -> list[dict]:
    """Rows of the table for one task."""
    names = ["triptych", "transformers"]
    if args.compile and "generation" not in task:
        names += [f"{name}, compiled" for name in names]
    bench = Bench(task, args)
    works: dict[str, Work] = {}
    outputs, peaks = {}, {}
    for name in names:
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if args.device == "cuda" else 0
        contender = bench.contender(name)
        if not name.endswith("compiled"):
            outputs[name] = contender.outputs().detach().cpu()
        for _ in range(args.warmup):
            seconds(contender.work, args.device)  # warm up: caches, kernels' own tuning, compilation
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20 if args.device == "cuda" else None
        works[name] = contender.work
    apart = difference(task, outputs["triptych"], outputs["transformers"])
    times = alternate(works, args.rounds, args.device)
    return [
        {"task": task, "contender": name, **values, "peak_megabytes": peaks[name], "difference": apart}
        for name, values in medians(times, bench.tokens, "tokens").items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--rows", type=int, help="rows of a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3, help="rounds that do not count")
    parser.add_argument("--quick", action="store_true", help="5 rounds after 2")
    parser.add_argument("--compile", action="store_true", help="also run both through torch.compile")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.warmup = 5, 2
    torch.set_num_threads(args.threads)
    import transformers

    transformers.logging.set_verbosity_error()
    rows = [row for task in args.tasks for row in compare(task, args)]
    setting = {
        "device": device_name(args.device),
        "precision": args.precision,
        "threads": args.threads,
        "rounds": args.rounds,
        "sizes": {family: vars(SIZES[family, args.device]) for family in ("bert", "gpt2")},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    columns = [
        text("task", 26),
        text("contender", 24),
        *measured("tokens", rate_width=10, rate=",.0f", unknown="-"),
        Column("differ", ">8", lambda row: f"{row['difference']:.1e}"),
    ]
    report(setting, rows, columns, as_json=args.json)


if __name__ == "__main__":
    main()
