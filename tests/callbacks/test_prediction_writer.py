import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.prediction_writer import PredictionWriter, picture_names
from datamodules.coco_file import read_coco
from errors import UserError
from tests.datamodules.builders import coco, picture
from tools.evaluate_detections import evaluate


class Data:
    """A dataset of two pictures (ids 10 and 5), whose test split is missing."""

    class_names = ["dog", "cat"]
    category_ids = [3, 7]
    splits = ["train", "test"]

    def __init__(self, folder, predict_files) -> None:
        self.annotation_file = coco(folder)
        self.images = folder / "images"
        self.predict_files = [str(file) for file in predict_files]

    def annotations(self, split):
        if split == "test":
            raise UserError("no such annotation file")
        return read_coco(self.annotation_file, self.images)


def predict(trainer, found, writer=None):
    writer = writer or PredictionWriter()
    writer.on_predict_start(trainer, None)
    for batch, predictions in enumerate(found):
        writer.write_on_batch_end(trainer, None, predictions, None, None, batch, 0)
    writer.on_predict_end(trainer, None)
    return json.loads((trainer.folder / "predictions" / "results.json").read_text())


def found(index, *rows):
    rows = np.array(rows, np.float32).reshape(-1, 6)
    return {"index": index, "boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].astype(np.int64)}


@pytest.fixture
def trainer(tmp_path):
    files = [
        tmp_path / "data" / "images" / "b.jpg",
        picture(tmp_path / "data" / "one" / "x.jpg"),
        picture(tmp_path / "data" / "two" / "x.png"),
    ]
    return SimpleNamespace(
        datamodule=Data(tmp_path / "data", files),
        default_root_dir=str(tmp_path / "run"),
        folder=tmp_path / "run",
        world_size=1,
        is_global_zero=True,
    )


def test_results_and_pictures(trainer):
    rows = predict(
        trainer, [[found(0, [1, 2, 11, 14, 0.5, 1]), found(1)], [found(2, [0, 0, 4, 5, 0.75, 0], [1, 1, 2, 3, 0.1, 1])]]
    )
    assert rows == [
        {"image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 12], "score": 0.5},
        {"image_id": "two/x", "category_id": 3, "bbox": [0, 0, 4, 5], "score": 0.75},
        {"image_id": "two/x", "category_id": 7, "bbox": [1, 1, 1, 2], "score": pytest.approx(0.1)},
    ]
    drawn = {str(file.relative_to(trainer.folder / "predictions")) for file in trainer.folder.rglob("*.jpg")}
    assert drawn == {"images/b.jpg", "one/x.jpg", "two/x.jpg"}


def test_boxes_below_the_threshold_are_not_drawn(trainer):
    low = [found(i, [0, 0, 40, 30, 0.2, 0]) for i in range(3)]
    predict(trainer, [low])
    without = np.array(Image.open(trainer.folder / "predictions" / "one" / "x.jpg"))
    predict(trainer, [low], PredictionWriter(score_threshold=0.1))
    assert (np.array(Image.open(trainer.folder / "predictions" / "one" / "x.jpg")) != without).any()


def test_results_on_the_dataset_can_be_evaluated(trainer):
    predict(trainer, [[found(0, [1, 2, 11, 14, 0.5, 1])]])
    results = trainer.folder / "predictions" / "results.json"
    assert evaluate(trainer.datamodule.annotation_file, results)["AP/cat"] == pytest.approx(1)


def test_processes_put_their_results_together(trainer, monkeypatch):
    # Rank 1 predicted picture 2 and, since the numbers do not divide, picture 0 once more.
    of_rank_1 = PredictionWriter()
    trainer.is_global_zero, trainer.world_size = False, 2
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda shards, own: None)
    of_rank_1.on_predict_start(trainer, None)
    of_rank_1.write_on_batch_end(
        trainer, None, [found(2, [0, 0, 4, 5, 0.75, 1]), found(0, [1, 2, 11, 14, 0.5, 1])], None, None, 0, 0
    )
    other = of_rank_1.results
    of_rank_1.on_predict_end(trainer, None)
    assert not (trainer.folder / "predictions" / "results.json").exists()

    def gather(shards, own):
        shards[:] = own, other

    trainer.is_global_zero = True
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    rows = predict(trainer, [[found(0, [1, 2, 11, 14, 0.5, 1]), found(1, [0, 0, 1, 1, 0.9, 0])]])
    assert [row["image_id"] for row in rows] == [5, "one/x", "two/x"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/a/x.jpg"], ["x"]),
        (["/a/x.jpg", "/a/b/x.jpg"], ["x", "b/x"]),
        (["/a/x.jpg", "/a/x.png", "/a/y.png"], ["x.jpg", "x.png", "y"]),
        (["/a/x.png", "/a/x.png.jpg"], ["x", "x.png.jpg"]),
    ],
)
def test_picture_names(files, names):
    assert picture_names(files) == names
    assert len({f"{name}.jpg" for name in names}) == len(files)
