from functools import partial

import pytest
import torch

from errors import UserError
from tests.callbacks.small import SmallModule, fit
from tests.helpers import finish, start


def assert_no_checkpoint_after(run, step: int) -> None:
    checkpoints = [torch.load(path, weights_only=True) for path in (run / "checkpoints").glob("*.ckpt")]
    for checkpoint in checkpoints:
        assert checkpoint["global_step"] <= step
        assert all(value.isfinite().all() for value in checkpoint["current_model_state"].values())
    assert len(checkpoints) >= min(step, 1)


@pytest.mark.parametrize("step", [0, 5, 16, 17])
@pytest.mark.parametrize("every", [1, None])
def test_a_loss_that_is_not_a_number_stops_before_a_checkpoint(tmp_path, step, every):
    with pytest.raises(UserError, match=rf"at step {step + 1} \(loss, second\)"):
        fit(tmp_path, module=partial(SmallModule, bad_step=step), every=every)
    assert_no_checkpoint_after(tmp_path, step if every else step // 6 * 6)


SCRIPT = """
from pathlib import Path
from tests.callbacks.small import SmallModule, fit

class BadOnSecondProcess(SmallModule):
    def training_step(self, batch, batch_idx):
        self.bad_step = 8 if self.global_rank == 1 else None
        return super().training_step(batch, batch_idx)

fit(Path("run"), module=BadOnSecondProcess, devices=2)
"""


def test_all_processes_stop_at_the_same_step_and_name_the_terms(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    status, output = finish(start(str(script)))
    assert status == 1, output
    # Both say so, unless the launcher is quicker to kill the other than it is to speak.
    assert "errors.UserError: the training loss is infinite or not a number at step 9 (loss, second)" in output
    assert_no_checkpoint_after(tmp_path / "run", 8)
