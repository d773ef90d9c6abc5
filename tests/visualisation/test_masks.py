import numpy as np
from PIL import Image

from visualisation.masks import draw_masks, palette_image
from visualisation.segmentation_figures import save_segmentation_figures

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1] = (128, 0, 0)
PALETTE[2] = (0, 200, 0)


def test_classes_are_coloured_and_named_below_the_picture():
    image = np.full((400, 400, 3), 100, np.uint8)
    labels = np.zeros((400, 400), np.uint8)
    labels[:100] = 1
    labels[100:200] = 255
    drawn = draw_masks(image, labels, ["background", "aeroplane", "car"], PALETTE, opacity=0.5)
    assert drawn.shape[1] == 400 and drawn.shape[0] > 400
    assert drawn[50, 50].tolist() == [114, 50, 50]
    assert drawn[150, 50].tolist() == [178, 178, 178]  # void is white
    assert drawn[300, 50].tolist() == [100, 100, 100]  # the background stays
    legend = drawn[400:].reshape(-1, 3)
    assert (legend == (128, 0, 0)).all(1).any()
    assert not (legend == (0, 200, 0)).all(1).any()  # no car to be seen


def test_small_pictures_are_enlarged():
    drawn = draw_masks(np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.uint8), ["background"], PALETTE)
    assert drawn.shape[1] == 640


def test_palette_files_hold_the_labels(tmp_path):
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    palette_image(labels, PALETTE).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(read), labels)
        assert np.asarray(read.convert("RGB"))[0, 1].tolist() == [128, 0, 0]


def test_figures(tmp_path):
    values = {"mIoU": 0.5, "IoU/a": 0.25, "IoU/b": 0.75, "IoU/c": float("nan")}
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    files = save_segmentation_figures(values, confusion, ["a", "b", "c"], tmp_path / "figures")
    assert {file.name for file in files} == {"class_iou.png", "confusion_matrix.png"}
    for file in files:
        assert np.asarray(Image.open(file).convert("RGB")).std() > 10
