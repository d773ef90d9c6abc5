from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule

from callbacks.nonmonotonic_averaging import NonMonotonicAveraging
from errors import UserError


class Number(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))


def train(callback, module, trainer, weights, losses):
    """An epoch is a step to the next weight, and a validation; the average that validation took."""
    found = []
    for weight, loss in zip(weights, losses, strict=True):
        with torch.no_grad():
            module.weight.fill_(weight)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)
        callback.on_validation_epoch_start(trainer, module)
        found.append(module.weight.item())
        callback.on_validation_epoch_end(trainer, module)
        trainer.callback_metrics = {"val/loss": torch.tensor(loss)}
        callback.on_validation_end(trainer, module)
        assert module.weight.item() == weight
    return found


def begin(patience):
    callback, module = NonMonotonicAveraging(patience=patience), Number()
    callback.setup(None, module, "fit")
    return callback, module, SimpleNamespace(global_step=0, sanity_checking=False, callback_metrics={})


def test_the_average_begins_when_validation_gets_worse():
    run = begin(patience=2)
    # 4.5 is above the best of all but the last two, 4.0; from the next step on weights are averaged.
    losses = [5.0, 4.0, 6.0, 4.2, 4.5, 1.0, 1.0, 1.0]
    assert train(*run, [1.0, 2, 3, 4, 5, 10, 20, 60], losses) == [1, 2, 3, 4, 5, 10, 15, 30]


def test_it_never_begins_while_validation_improves():
    weights = [3.0, 1, 4, 1, 5]
    assert train(*begin(patience=1), weights, [5.0, 4, 3, 2, 1]) == weights
    assert train(*begin(patience=5), weights, [1.0, 2, 3, 4, 5]) == weights  # too early to tell


def test_it_goes_on_after_a_restart():
    losses = [1.0, 2.0, 3.0, 3.0, 3.0]
    weights = [1.0, 2, 3, 10, 20]
    whole = train(*begin(patience=1), weights, losses)
    callback, module, trainer = begin(patience=1)
    first = train(callback, module, trainer, weights[:4], losses[:4])
    checkpoint = {"state_dict": module.state_dict(), "state": callback.state_dict()}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    again, module, resumed = begin(patience=1)
    again.load_state_dict(checkpoint["state"])
    again.on_load_checkpoint(trainer, module, checkpoint)
    resumed.global_step = trainer.global_step
    assert first + train(again, module, resumed, weights[4:], losses[4:]) == whole
    assert whole[-1] == 15.0


def test_what_it_watches_must_be_reported():
    callback, module, trainer = begin(patience=1)
    with pytest.raises(UserError, match="watches val/loss, which validation does not report"):
        callback.on_validation_end(trainer, module)
