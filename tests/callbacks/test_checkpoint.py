import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from callbacks.checkpoint_io import resolve_checkpoint
from tests.callbacks.small import Lost, SmallModule, Watch, fit, lose
from tests.helpers import assert_same_training, last_checkpoint


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A batch is lost before it begins: at the beginning, within an epoch, at its edges, within an accumulated step.
LOST = [1, 3, 5, 6, 7, 11, 12, 17]


@pytest.mark.parametrize("options", [
    {},
    {"accumulate_grad_batches": 4},  # the epoch's last step has two batches only
    {"val_check_interval": 3},
    {"val_check_interval": 2, "accumulate_grad_batches": 3, "every": 2},
    {"check_val_every_n_epoch": 2, "every": None},
])  # fmt: skip
def test_a_run_that_is_lost_anywhere_ends_as_if_it_was_not(tmp_path, options):
    whole = Watch()
    fit(tmp_path / "whole", watch=whole, **options)
    for batch in LOST:
        run = tmp_path / str(batch)
        before, after = Watch(batch, lose), Watch()
        with pytest.raises(Lost):
            fit(run, watch=before, **options)
        if not list(run.glob("checkpoints/last-*")):  # lost before the first checkpoint
            continue
        trainer = fit(run, watch=after, resume=resolve_checkpoint("last", run), **options)
        assert_same_training(last_checkpoint(tmp_path / "whole"), last_checkpoint(run))
        assert trainer.current_epoch == 3
        # Validations between the checkpoint and the loss happen twice, but none is left out.
        assert set(before.validated) | set(after.validated) == set(whole.validated), batch


def test_resuming_from_the_best_checkpoint_is_exact_too(tmp_path):
    scores = {6: 0.1, 12: 0.3, 18: 0.2}
    fit(tmp_path / "whole", module=partial(SmallModule, scores))
    best = resolve_checkpoint("best", tmp_path / "whole")
    assert torch.load(best, weights_only=True)["global_step"] == 12
    fit(tmp_path / "again", module=partial(SmallModule, scores), resume=best)
    assert_same_training(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "again"))


def test_checkpoints_hold_the_average_and_the_raw_weights(tmp_path):
    # Validation runs with the average in place of the weights; the checkpoint after it must have them apart again.
    fit(tmp_path, max_epochs=1)
    for name in ("best.ckpt", "last-00000006.ckpt"):
        checkpoint = torch.load(tmp_path / "checkpoints" / name, weights_only=True)
        parameters = checkpoint["optimizer_states"][0]["state"]
        assert len(parameters) == 6
        assert not torch.equal(
            checkpoint["state_dict"]["network.0.weight"], checkpoint["current_model_state"]["network.0.weight"]
        )
    first, second = (
        torch.load(tmp_path / "checkpoints" / name, weights_only=True) for name in ("best.ckpt", "last-00000006.ckpt")
    )
    for key in ("state_dict", "current_model_state"):
        for name in first[key]:
            assert torch.equal(first[key][name], second[key][name])


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ({6: 0.1, 12: 0.3, 18: 0.2}, 12),
        ({6: 0.1, 12: float("nan"), 18: 0.05}, 6),
        ({6: float("nan"), 12: 0.2, 18: float("nan")}, 12),
    ],
)
def test_best_is_the_highest_value_and_nan_the_lowest(tmp_path, scores, step):
    fit(tmp_path, module=partial(SmallModule, scores))
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == step
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"{name}.ckpt{suffix}" for name in ("best", "last-00000017", "last-00000018") for suffix in ("", ".sha256")
    ]


def test_a_run_that_moved_remembers_its_best_value(tmp_path):
    scores = {6: 0.3, 12: 0.1, 18: 0.2}
    with pytest.raises(Lost):
        fit(tmp_path / "here", module=partial(SmallModule, scores), watch=Watch(14, lose))
    (tmp_path / "here").rename(tmp_path / "there")
    trainer = fit(
        tmp_path / "there", module=partial(SmallModule, scores), resume=resolve_checkpoint("last", tmp_path / "there")
    )
    best = tmp_path / "there" / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 6
    assert Path(trainer.checkpoint_callbacks[0].best_model_path) == best


def test_without_validation_there_is_no_best(tmp_path):
    fit(tmp_path, limit_val_batches=0, max_epochs=1)
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    assert last_checkpoint(tmp_path).name == "last-00000006.ckpt"


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"val_check_interval": 2}])
@pytest.mark.parametrize("batch", [7, 11])  # in mid-epoch; at an epoch's last batch
def test_sigterm_finishes_the_step_writes_and_ends(tmp_path, options, batch):
    fit(tmp_path / "whole", **options)
    handler = signal.getsignal(signal.SIGTERM)
    watch = Watch(batch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "run", watch=watch, every=None, **options)
    assert signal.getsignal(signal.SIGTERM) is handler
    steps = -(-12 // options["accumulate_grad_batches"]) if "accumulate_grad_batches" in options else 0
    expected = steps or batch + 1
    if "accumulate_grad_batches" in options and batch == 7:
        expected = 3  # batches 6 to 8 make the third step
    assert last_checkpoint(tmp_path / "run").name == f"last-{expected:08d}.ckpt"
    fit(tmp_path / "run", resume=resolve_checkpoint("last", tmp_path / "run"), **options)
    assert_same_training(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "run"))


def test_sigterm_outside_training_ends_at_once(tmp_path):
    class Interrupted(SmallModule):
        def validation_step(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SIGTERMException):
        fit(tmp_path, module=Interrupted)  # in the sanity check
    assert not (tmp_path / "checkpoints").exists()
