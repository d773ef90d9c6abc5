"""Two processes on one machine through the command line."""

import json

from tests.helpers import D0, SMALL, finish, train

TWO = "--trainer.devices=2"


def results(run):
    return json.loads((run / "results.json").read_text())


def test_validation_prints_the_same_digits_on_two_processes(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    found = []
    for devices in ("--trainer.devices=1", TWO):
        run = tmp_path / devices[-1]
        status, output = finish(train(
            "validate", "--config", D0, *SMALL, "--ckpt_path", str(trained / "checkpoints" / "best.ckpt"),
            devices, "--run_dir", str(run), "--data.eval_batch_size=1",
        ))  # fmt: skip
        assert status == 0, output
        found.append(results(run)["val"])
    assert found[0] == found[1]
    assert len(found[0]) > 15


def test_training_on_two_processes_leaves_one_run(tmp_path):
    run = tmp_path / "run"
    status, output = finish(
        train("--config", D0, *SMALL, TWO, "--run_dir", str(run), "--trainer.limit_train_batches=1")
    )
    assert status == 0, output
    assert {"val", "test"} <= set(results(run))
    assert len(list(run.glob("*.yaml"))) == 1 and (run / "checkpoints" / "best.ckpt").exists()
    assert not list(tmp_path.glob("runs/*")), "a process of its own made another run directory"


def test_a_mistake_ends_all_processes(tmp_path):
    status, output = finish(
        train("--config", D0, *SMALL, TWO, "--data.image_size=100", "--run_dir", str(tmp_path / "run"))
    )
    assert status == 2, output
    assert "error: an input of 100 x 100 pixels" in output
