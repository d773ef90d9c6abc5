import numpy as np
import pytest
from PIL import Image

from datamodules.images import CorruptImageError
from datamodules.segmentation.colours import read_colours
from datamodules.segmentation.masks import ColourMasks, IndexMasks, read_indices, voc_palette
from errors import UserError
from tests.datamodules.segmentation.builders import LABELS, mask


def test_palette_is_vocs():
    palette = voc_palette()
    assert palette[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert palette[[15, 20, 255]].tolist() == [[192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert len({tuple(colour) for colour in palette.tolist()}) == 256


@pytest.mark.parametrize("mode", ["P", "L"])
def test_numbers_are_read_as_they_are_stored(tmp_path, mode):
    labels = IndexMasks(range(2))(mask(tmp_path / "m.png", mode=mode))
    assert labels.dtype == np.uint8 and labels.flags.writeable
    np.testing.assert_array_equal(labels, LABELS)


def test_small_and_wide_masks(tmp_path):
    few = np.array([[0, 1], [1, 0]], np.uint8)
    Image.fromarray(few.astype(bool)).save(tmp_path / "bits.png")
    assert IndexMasks(range(2))(tmp_path / "bits.png").tolist() == few.tolist()
    Image.fromarray(np.array([[0, 1000], [300, 255]], np.uint16)).save(tmp_path / "wide.png")
    assert IndexMasks([0, 300], ignore=[1000])(tmp_path / "wide.png").tolist() == [[0, 255], [1, 255]]
    with pytest.raises(UserError, match=r"wide\.png: the mask holds the value 1000"):
        IndexMasks([0, 300])(tmp_path / "wide.png")


def test_ids_become_labels_and_the_ignored_255(tmp_path):
    file = mask(tmp_path / "m.png", np.array([[7, 8, 11, 0, 255]], np.uint8), mode="L")
    assert IndexMasks([7, 11, 8], ignore=[0])(file).tolist() == [[0, 2, 1, 255, 255]]


def test_a_value_that_is_no_class_names_file_value_and_remedy(tmp_path):
    file = mask(tmp_path / "m.png", np.array([[0, 4]], np.uint8))
    with pytest.raises(
        UserError, match=r"m\.png: the mask holds the value 4, .* none of the 3 classes; .*--data\.ignore"
    ):
        IndexMasks(range(3))(file)
    with pytest.raises(UserError, match="holds the value 4"):
        IndexMasks(range(3), ignore=[9])(file)


def test_colours_where_numbers_are_expected(tmp_path):
    with pytest.raises(UserError, match=r"m\.png: the mask is stored in colours \(mode RGB\).*mode L or P"):
        read_indices(mask(tmp_path / "m.png", mode="RGB"))


def test_broken_and_missing_masks(tmp_path):
    file = mask(tmp_path / "m.png")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(CorruptImageError, match=r"m\.png: the mask cannot be decoded"):
        read_indices(file)
    file.write_text("labels")
    with pytest.raises(CorruptImageError, match=r"m\.png: the mask cannot be decoded"):
        read_indices(file)
    with pytest.raises(UserError, match=r"none\.png: the mask cannot be read"):
        read_indices(tmp_path / "none.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_labels(tmp_path, mode):
    colours = {(128, 0, 0): 1, (0, 0, 0): 0, (224, 224, 192): 255}
    labels = ColourMasks(colours)(mask(tmp_path / "m.png", mode=mode))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("wrong", [(127, 0, 0), (255, 255, 255), (0, 0, 1)])
def test_a_colour_that_is_not_in_the_table(tmp_path, wrong):
    Image.new("RGB", (3, 2), wrong).save(tmp_path / "m.png")
    message = rf"m\.png: the mask holds the colour {wrong[0]} {wrong[1]} {wrong[2]} in 6 pixels.*--data\.colours"
    with pytest.raises(UserError, match=message):
        ColourMasks({(0, 0, 0): 0, (128, 0, 0): 1})(tmp_path / "m.png")


@pytest.mark.parametrize(
    "text",
    [
        "64 128 64\tAnimal\n# comment\n\n192 0 128 \t Archway 2\n",  # CamVid
        "name,r,g,b\nAnimal,64,128,64\nArchway 2, 192, 0, 128\n",
        "# label:color_rgb:parts:actions\nAnimal:64,128,64::\nArchway 2:192,0,128::\n",
    ],
)
def test_tables_of_colours(tmp_path, text):
    (tmp_path / "colours.txt").write_text(text)
    expected = [("Animal", (64, 128, 64)), ("Archway 2", (192, 0, 128))]
    assert read_colours(str(tmp_path / "colours.txt")) == expected
    assert read_colours({"Animal": [64, 128, 64], "Archway 2": [192, 0, 128]}) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": [0, 0]}, r"data\.colours: a has the colour \[0, 0\]"),
        ({"a": [0, 0, 256]}, r"a has the colour \[0, 0, 256\]; give red, green and blue from 0 to 255"),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, r"a and b both have the colour \[1, 2, 3\]"),
        ({}, "holds no colours"),
        ("none.txt", r"none\.txt: no such table of colours"),
    ],
)
def test_bad_tables(source, message):
    with pytest.raises(UserError, match=message):
        read_colours(source)


def test_a_line_that_is_no_colour(tmp_path):
    (tmp_path / "colours.txt").write_text("road 1 2 3\nsky 4 5\n")
    with pytest.raises(UserError, match=r"colours\.txt: line 2 is 'sky 4 5'; write a name and red, green and blue"):
        read_colours(str(tmp_path / "colours.txt"))
