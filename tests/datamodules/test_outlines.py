import pytest

from datamodules import CocoDetection, VocDetection
from datamodules.outlines import Outlines
from errors import UserError
from tests.datamodules.builders import annotation, coco, voc

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with NumPy 2


def test_polygons_and_run_lengths_by_object(tmp_path):
    """In the file objects of both pictures alternate; 12 columns of 30, then 3 pixels, as run lengths."""
    square = {"bbox": [1, 2, 4, 3], "segmentation": [[1, 2, 5, 2, 5, 5, 1, 5]]}
    column = {"bbox": [12, 0, 1, 3], "segmentation": {"size": [30, 40], "counts": [360, 3, 837]}, "iscrowd": 1}
    objects = [
        annotation(id=1, image_id=10, **square),
        annotation(id=2, image_id=5, **column),
        annotation(id=3, image_id=10, **column),
        annotation(id=4, image_id=5, **square | {"bbox": [0, 0, 0, 0]}),
    ]
    file = coco(tmp_path, annotations=objects)
    data = CocoDetection(
        root=str(tmp_path), train_annotations=file.name, train_images="images", val_annotations=file.name,
        val_images="images", augmentation="copy_paste", image_size=32,
    )  # fmt: skip
    dataset = data.dataset("train", augmented=True)
    _, found = dataset.load(0)
    masks = dataset.masks(found, (30, 40))
    assert found["iscrowd"].tolist() == [False, True] and masks.shape == (2, 30, 40)
    assert masks[0, 2:5, 1:5].all() and masks[0].sum() == 12
    assert masks[1, :3, 12].all() and masks[1].sum() == 3
    _, found = dataset.load(1)  # the empty box is nobody's target
    assert dataset.masks(found, (30, 40)).sum((1, 2)).tolist() == [3]
    assert data.annotations("val").outlines is None, "only what needs outlines reads them"


def test_no_objects():
    assert Outlines.from_list([]).masks([], (3, 4)).shape == (0, 3, 4)


def test_copy_paste_needs_outlines(tmp_path):
    file = coco(tmp_path)
    data = CocoDetection(
        root=str(tmp_path), train_annotations=file.name, train_images="images", val_annotations=None,
        augmentation="copy_paste", image_size=32,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"annotation 1 has the segmentation None"):
        data.dataset("train", augmented=True)
    voc(tmp_path / "voc", [("cat", (1, 1, 9, 9), 0)])
    data = VocDetection(
        root=str(tmp_path / "voc"), train_sets=["./train"], val_sets=[], classes=["cat"], augmentation="copy_paste",
        image_size=32,
    )  # fmt: skip
    with pytest.raises(UserError, match="copy_paste needs outlines of the objects, which this dataset does not have"):
        data.dataset("train", augmented=True)[0, 0]
