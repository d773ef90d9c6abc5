import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.detection_visualisation import DetectionVisualisation, wandb_boxes
from callbacks.loggers import SafeWandbLogger
from callbacks.visualisation import reduced
from datamodules.coco_file import read_coco
from metrics.curves import detection_curves
from metrics.detection import DetectionMetric
from metrics.tide import tide
from tests.datamodules.builders import coco
from tests.metrics.synthetic import random_case
from visualisation.boxes import class_colour

DOG, CAT = 0, 1  # by category id


class Sent(SafeWandbLogger):
    """Keeps what it would send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = {}

    def log_pictures(self, key, pictures, step) -> None:
        self.sent[key] = pictures


@pytest.fixture
def trainer(tmp_path):
    """In a validation of two pictures of 40 x 30 pixels; only b.jpg, index 1, has objects."""
    annotations = read_coco(coco(tmp_path / "data"), tmp_path / "data" / "images")
    return SimpleNamespace(
        datamodule=SimpleNamespace(annotations=lambda split: annotations, size=lambda split: len(annotations)),
        default_root_dir=str(tmp_path / "run"),
        loggers=[Sent(), TensorBoardLogger(tmp_path / "run", name="", version="tensorboard")],
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        is_global_zero=True,
        global_rank=0,
        world_size=1,
        current_epoch=3,
        global_step=40,
    )


def found(index, *rows):
    rows = np.array(rows, np.float32).reshape(-1, 6)
    return {"index": index, "boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].astype(np.int64)}


def validate(callback, trainer, *batches):
    callback.on_validation_epoch_start(trainer, None)
    for number, batch in enumerate(batches):
        callback.on_validation_batch_end(trainer, SimpleNamespace(last_predictions=batch), None, None, number)
    callback.on_validation_end(trainer, None)


def test_pictures_reach_the_disk_and_the_loggers(trainer, tmp_path):
    boxes = ([0, 0, 20, 15, 0.9, DOG], [5, 5, 10, 10, 0.2, CAT])
    validate(DetectionVisualisation(num_images=1), trainer, [found(0)], [found(1, *boxes)])

    sheet = np.array(Image.open(tmp_path / "run" / "images" / "val_epoch_0003.png"))
    assert sheet.shape == (480, 2 * 480 + 4, 3)
    truth, prediction = sheet[:, :480], sheet[:, 484:]
    for half, label, absent in ((truth, CAT, None), (prediction, DOG, CAT)):
        assert (half == class_colour(label)).all(2).any()
        assert absent is None or not (half == class_colour(absent)).all(2).any()  # below the threshold

    (sent,) = trainer.loggers[0].sent["val/pictures"]
    assert sent["image"].shape == (30, 40, 3)
    (predicted,) = sent["boxes"]["predictions"]["box_data"]
    assert predicted["position"] == {"minX": 0, "minY": 0, "maxX": 20, "maxY": 15}
    assert predicted["class_id"] == DOG and predicted["box_caption"] == "dog 0.90"
    assert len(sent["boxes"]["ground_truth"]["box_data"]) == 2
    assert sent["boxes"]["predictions"]["class_labels"] == {CAT: "cat", DOG: "dog"}

    trainer.loggers[1].experiment.flush()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (image,) = events.Images("val/pictures")
    assert (image.step, image.width, image.height) == (40, 964, 480)


def test_a_validation_of_its_own_has_its_own_sheet(trainer, tmp_path):
    trainer.state.fn = TrainerFn.VALIDATING
    validate(DetectionVisualisation(every_n_epochs=5), trainer, [found(0), found(1)])
    assert [file.name for file in (tmp_path / "run" / "images").iterdir()] == ["val.png"]


def test_each_process_shows_its_own(trainer):
    trainer.world_size = 2
    for rank in (0, 1):
        trainer.global_rank = rank
        callback = DetectionVisualisation()
        callback.on_validation_epoch_start(trainer, None)
        assert callback.wanted == {rank}


@pytest.mark.parametrize(("epoch", "drawn"), [(0, False), (1, True), (2, False), (3, True)])
def test_every_second_epoch(trainer, tmp_path, epoch, drawn):
    trainer.current_epoch = epoch
    validate(DetectionVisualisation(every_n_epochs=2), trainer, [found(0), found(1)])
    assert (tmp_path / "run" / "images").exists() == drawn


def test_nothing_in_the_sanity_check(trainer, tmp_path):
    trainer.sanity_checking = True
    validate(DetectionVisualisation(), trainer, [found(0), found(1)])
    assert not (tmp_path / "run" / "images").exists()


def test_a_skipped_picture_is_black(trainer, tmp_path):
    picture = tmp_path / "data" / "images" / "b.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    validate(DetectionVisualisation(), trainer, [found(0), found(1)])
    first, second = trainer.loggers[0].sent["val/pictures"]
    assert first["image"].any() and not second["image"].any()


def test_figures_after_the_test(trainer, tmp_path):
    truth, results = random_case(0)
    metric = DetectionMetric(truth)
    metric.update(np.arange(len(results)), results)
    metric.compute()
    curves, errors = detection_curves(metric), tide(metric)
    DetectionVisualisation().on_test_end(trainer, SimpleNamespace(test_curves=curves, test_errors=errors))
    folder = tmp_path / "run" / "figures"
    assert json.loads((folder / "test_curves.json").read_text())["best_f1"] == curves["best_f1"]
    assert json.loads((folder / "test_errors.json").read_text()) == errors
    names = {"confusion_matrix", "precision_recall", "f1", "errors"}
    assert {file.stem for file in folder.glob("*.png")} == names
    assert set(trainer.loggers[0].sent) == {f"test/{name}" for name in names}


def test_other_processes_draw_no_figures(trainer, tmp_path):
    trainer.is_global_zero = False
    DetectionVisualisation().on_test_end(trainer, SimpleNamespace(test_curves=None))
    assert not (tmp_path / "run" / "figures").exists()


def test_reduced():
    image = np.zeros((1000, 2000, 3), np.uint8)
    small, factor = reduced(image, 500)
    assert small.shape == (250, 500, 3) and factor == 0.25
    assert reduced(image, 2000) == (image, 1.0)


def test_wandb_boxes__of_ground_truth_have_no_scores():
    (box,) = wandb_boxes(np.array([[1.0, 2, 3, 4]]), np.array([1]), ["cat", "dog"])["box_data"]
    assert "scores" not in box and box["box_caption"] == "dog"
