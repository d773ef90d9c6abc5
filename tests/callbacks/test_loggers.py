import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.loggers import AppendingCSVLogger
from tests.helpers import D0, ROOT, SMALL
from train import main


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_csv__late_columns_keep_old_rows(tmp_path):
    logger = AppendingCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0}, 0)
    logger.log_metrics({"val/mAP": 0.25}, 0)
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert [(r["step"], r["train/loss"], r["val/mAP"]) for r in table(tmp_path)] == [
        ("0", "2.0", ""),
        ("0", "", "0.25"),
        ("1", "1.0", ""),
    ]


def test_csv__a_resumed_run_replaces_what_it_repeats(tmp_path):
    first = AppendingCSVLogger(str(tmp_path))
    for step in range(5):
        first.log_metrics({"train/loss": step}, step)
    AppendingCSVLogger(str(tmp_path)).log_metrics({"test/mAP": 0.5}, 0)  # an evaluation deletes nothing
    assert len(table(tmp_path)) == 6
    resumed = AppendingCSVLogger(str(tmp_path))
    for step in (3, 4, 5):
        resumed.log_metrics({"train/loss": 10 + step}, step)
    losses = [(r["step"], r["train/loss"]) for r in table(tmp_path) if r["train/loss"]]
    assert losses == [("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "13.0"), ("4", "14.0"), ("5", "15.0")]


def test_csv__a_validation_repeated_before_the_first_training_row(tmp_path):
    first = AppendingCSVLogger(str(tmp_path))
    for metrics, step in (({"train/loss": 1.0}, 9), ({"val/mAP": 0.1}, 14), ({"train/loss": 2.0}, 19)):
        first.log_metrics({**metrics, "epoch": 0}, step)
    resumed = AppendingCSVLogger(str(tmp_path))  # from step 12, say
    resumed.log_metrics({"val/mAP": 0.2, "epoch": 0}, 14)
    resumed.log_metrics({"train/loss": 3.0, "epoch": 0}, 19)
    assert [(r["step"], r["train/loss"], r["val/mAP"]) for r in table(tmp_path)] == [
        ("9", "1.0", ""),
        ("14", "", "0.2"),
        ("19", "3.0", ""),
    ]


def test_csv__a_row_that_was_cut_off_by_a_kill_is_dropped(tmp_path):
    AppendingCSVLogger(str(tmp_path)).log_metrics({"train/loss": 0.5, "epoch": 0}, 0)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("1,0.2")
    AppendingCSVLogger(str(tmp_path)).log_metrics({"val/mAP": 0.25}, 1)
    assert [(r["step"], r["train/loss"], r["val/mAP"]) for r in table(tmp_path)] == [
        ("0", "0.5", ""),
        ("1", "", "0.25"),
    ]


def test_csv__a_file_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.write_text("a file where the directory should be")
    logger = AppendingCSVLogger(str(folder))
    for step in range(2):
        logger.log_metrics({"train/loss": float(step)}, step)
    folder.unlink()
    logger.log_metrics({"train/loss": 2.0}, 2)
    logger.log_metrics({"val/mAP": 0.5})
    (folder / "metrics.csv").unlink()
    (folder / "metrics.csv").mkdir()
    logger.log_metrics({"train/loss": 3.0}, 3)
    (folder / "metrics.csv").rmdir()
    logger.log_metrics({"train/loss": 4.0}, 4)
    rows = [(row["step"], row["train/loss"]) for row in table(folder)]
    assert rows == [("2", "2.0"), ("", ""), ("3", "3.0"), ("4", "4.0")]
    assert caplog.text.count("cannot be written") == 1


def test_csv__a_file_of_rubbish_is_begun_anew(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"\xff\x00\x01,,\n1,2,3,4,5\n\x00")
    AppendingCSVLogger(str(tmp_path)).log_metrics({"train/loss": 0.5}, 3)
    assert [row["train/loss"] for row in table(tmp_path) if row["step"] == "3"] == ["0.5"]


@pytest.mark.parametrize("overlay", ["csv", "tensorboard"])
def test_a_training_with_other_loggers(overlay, tmp_path):
    run = tmp_path / "run"
    logger = str(ROOT / "configs" / "logger" / f"{overlay}.yaml")
    assert main(["--config", D0, "--config", logger, *SMALL, "--run_dir", str(run)]) == 0
    assert any(row["val/mAP"] for row in table(run)) and not (run / "wandb").exists()
    assert (run / "tensorboard").exists() == (overlay == "tensorboard")
    if overlay == "tensorboard":
        events = EventAccumulator(str(run / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [0, 1]
        assert events.Images("val/pictures") and events.Images("test/precision_recall")
