import torch

from callbacks.ema import ExponentialMovingAverage


def test_ramped_decay__literals():
    ema = ExponentialMovingAverage(decay=0.5)
    for updates, decay in ((1, 2 / 11), (2, 3 / 12), (7, 8 / 17), (9, 0.5), (1000, 0.5)):
        ema._latest_update_step = updates
        averaged, counter = [torch.tensor([1.0])], [torch.tensor(3)]
        ema._update(averaged, [torch.tensor([3.0])], torch.tensor(updates))
        ema._update(counter, [torch.tensor(8)], torch.tensor(updates))
        torch.testing.assert_close(averaged[0], torch.tensor([decay * 1.0 + (1 - decay) * 3.0]))
        assert counter[0] == 8


def test_checkpoint_tested_after_training_has_averaged_weights(trained):
    # `results.json` was written by fit -> test, in one process; the weights that count are those of `state_dict`.
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    name = "network.backbone.model.conv_stem.weight"
    name = name if name in checkpoint["state_dict"] else next(iter(checkpoint["state_dict"]))
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
