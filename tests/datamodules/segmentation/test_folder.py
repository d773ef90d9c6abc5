from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.segmentation import FolderSegmentation
from datamodules.segmentation.masks import voc_palette
from errors import UserError
from tests.datamodules.builders import picture
from tests.datamodules.segmentation.builders import LABELS, folder, mask

CAMVID = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "camvid" / "CamVid"
COLOURS = {"ground": [0, 0, 0], "thing": [128, 0, 0], "border": [224, 224, 192]}


def own(root, **options):
    usual = {"classes": ["ground", "thing"], "val_images": None, "augmentation": "none", "shuffle": False}
    return FolderSegmentation(root=str(root), **(usual | options))


def names(data, split="train"):
    samples = data.samples(split)
    assert [Path(f).stem for f in samples.mask_files] == [Path(f).stem for f in samples.image_files]
    return [Path(f).stem for f in samples.image_files]


def test_split_folders(tmp_path):
    folder(folder(tmp_path, ("b", "deep/a")), ("c",), split="val")
    data = own(tmp_path, val_images="val/images")
    assert data.splits == ["train", "val"] and data.name == tmp_path.name
    assert names(data) == ["b", "a"] and names(data, "val") == ["c"]
    np.testing.assert_array_equal(data.label("train", 1), LABELS)


def test_split_lists(tmp_path):
    folder(tmp_path, ("a", "b", "c"), split="all")
    (tmp_path / "train.txt").write_text("c\na.jpg\n\n")
    (tmp_path / "val.txt").write_text("b\n")
    places = {f"{split}_{kind}": f"all/{kind}" for split in ("train", "val") for kind in ("images", "masks")}
    data = own(tmp_path, **places, train_list="train.txt", val_list="val.txt")
    assert names(data) == ["c", "a"] and names(data, "val") == ["b"]


def test_lists_of_pairs(tmp_path):
    folder(tmp_path)
    (tmp_path / "pairs.txt").write_text("/Net/train/images/b.jpg /Net/train/masks/a.png\n")
    data = own(tmp_path, train_images=None, train_list="pairs.txt", list_prefix="/Net/")
    assert data.samples("train").image_files.tolist() == [str(tmp_path / "train/images/b.jpg")]
    assert data.samples("train").mask_files.tolist() == [str(tmp_path / "train/masks/a.png")]


def test_names_with_other_endings(tmp_path):
    """Cityscapes' names, with what else lies in its folders."""
    picture(tmp_path / "img" / "ulm" / "ulm_1_leftImg8bit.png")
    picture(tmp_path / "img" / "ulm" / "ulm_1_rightImg8bit.png")
    mask(tmp_path / "gt" / "ulm" / "ulm_1_gtFine_labelIds.png", mode="L")
    suffixes = {"image_suffix": "_leftImg8bit.png", "mask_suffix": "_gtFine_labelIds.png"}
    data = own(tmp_path, train_images="img", train_masks="gt", **suffixes)
    assert data.size("train") == 1
    np.testing.assert_array_equal(data.label("train", 0), LABELS)


def test_masks_among_the_pictures(tmp_path):
    picture(tmp_path / "a.png")
    mask(tmp_path / "a_mask.png")
    data = own(tmp_path, train_images=".", train_masks=".", mask_suffix="_mask.png")
    assert data.samples("train").image_files.tolist() == [str(tmp_path / "a.png")]
    np.testing.assert_array_equal(data.label("train", 0), LABELS)


def test_masks_in_colours(tmp_path):
    folder(tmp_path, mode="RGB")
    (tmp_path / "colours.csv").write_text("name,r,g,b\nground,0,0,0\nthing,128,0,0\nborder,224,224,192\n")
    for colours in (COLOURS, "colours.csv"):
        data = own(tmp_path, classes=None, mask_format="colour", colours=colours, ignore=["border"])
        assert data.class_names == ["ground", "thing"]
        np.testing.assert_array_equal(data.label("train", 0), LABELS)
        assert data.palette[[0, 1, 2]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    turned = own(tmp_path, classes=["thing", "ground"], mask_format="colour", colours=COLOURS, ignore=["border"])
    np.testing.assert_array_equal(turned.label("train", 0), np.array([1, 0, *[255] * 254], np.uint8)[LABELS])
    assert turned.palette[0].tolist() == [128, 0, 0]


def test_several_colours_of_one_class(tmp_path):
    folder(tmp_path, mode="RGB")
    (tmp_path / "colours.txt").write_text("0 0 0 ground\n128 0 0 ground\n224 224 192 thing\n")
    data = own(tmp_path, classes=None, mask_format="colour", colours="colours.txt")
    assert data.class_names == ["ground", "thing"]
    np.testing.assert_array_equal(data.label("train", 0), (LABELS == 255).astype(np.uint8))
    assert data.palette[0].tolist() == [0, 0, 0]  # the first


def test_classes_in_a_file_and_their_colours(tmp_path):
    (tmp_path / "names.txt").write_text("background\nthing\n")
    data = own(tmp_path, classes="names.txt")
    assert data.class_names == ["background", "thing"] and data.num_classes == 2
    np.testing.assert_array_equal(data.palette, voc_palette())
    data = own(tmp_path)  # nothing is background: nothing is black
    assert data.palette[:2].tolist() == [[128, 0, 0], [0, 128, 0]]
    assert own(tmp_path, colours={"thing": [1, 2, 3]}).palette[1].tolist() == [1, 2, 3]


def test_ids_that_are_not_dense(tmp_path):
    folder(tmp_path, labels=np.array([[7, 0], [11, 255]], np.uint8).repeat(15, 0).repeat(20, 1))
    data = own(tmp_path, class_ids=[11, 7], ignore=[0])
    assert data.label("train", 0)[::15, ::20].tolist() == [[1, 255], [0, 255]]
    assert data.picture("train", 0).shape == (30, 40, 3)


def test_the_fingerprint_is_of_names_classes_and_masks(tmp_path):
    folder(tmp_path)
    first = own(tmp_path).fingerprint
    assert own(tmp_path).fingerprint == first
    assert own(tmp_path, classes=["thing", "ground"]).fingerprint != first
    mask(tmp_path / "train/masks/a.png", np.zeros_like(LABELS))
    assert own(tmp_path).fingerprint != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": "none"}, r"none: no such folder; name yours with --data\.root, --data\.train_images"),
        ({"train_masks": None}, r"data\.train_masks is not given"),
        ({"train_masks": "train"}, r"train/a\.png: no such mask \(the first of 2 that are missing\)"),
        ({"mask_suffix": "_L.png"}, r"a_L\.png: no such mask"),
        ({"image_suffix": ".bmp"}, r"images: has no file with a name that ends with \.bmp"),
        ({"train_list": "none.txt"}, r"none\.txt: no such list of pictures"),
        ({"train_list": "empty.txt"}, r"empty\.txt: names no pictures"),
        ({"train_list": "list.txt"}, r"list\.txt: names 'z\.jpg', but .*train/images has no such picture"),
        (
            {"train_images": None, "train_list": "list.txt"},
            r"list\.txt: has the line 'a'; write a picture and its mask",
        ),
        ({"train_images": None, "train_list": "pairs.txt"}, r"images/q\.jpg: no such picture; add it, or take it out"),
        ({"classes": None}, r"data\.classes names no class"),
        ({"classes": []}, r"data\.classes names no class"),
        ({"classes": "none.txt"}, r"none\.txt: no such list of classes"),
        ({"classes": ["a", "b", "a"]}, r"data\.classes lists 'a' twice"),
        ({"classes": [str(i) for i in range(256)]}, r"lists 256 names; there can be 255 at most"),
        ({"class_ids": [1]}, r"data\.class_ids is \[1\], but there are 2 classes"),
        ({"class_ids": [1, 1]}, r"give each a number of its own"),
        ({"class_ids": [1, 255]}, r"the value 255 of masks is to be ignored, but is also that of the class thing"),
        ({"ignore": [0]}, r"the value 0 of masks .* of the class ground; say which values .* --data\.class_ids"),
        ({"ignore": ["void"]}, r"data\.ignore holds 'void', but masks hold numbers"),
        ({"mask_format": "colour"}, r"data\.mask_format is colour; say with --data\.colours"),
        ({"mask_format": "colour", "colours": COLOURS}, r"the name 'border' is in data\.colours only"),
        ({"mask_format": "colour", "colours": COLOURS, "ignore": ["border", "sky"]}, r"the name 'sky' is in data"),
        ({"colours": "none.txt", "classes": None}, r"none\.txt: no such table of colours"),
    ],
)
def test_mistakes_are_named(tmp_path, options, message):
    folder(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "list.txt").write_text("a\nz.jpg\n")
    (tmp_path / "pairs.txt").write_text("train/images/q.jpg\ttrain/masks/a.png\n")
    with pytest.raises(UserError, match=message):
        own(tmp_path, **options).size("train")


def test_masks_of_the_other_kind(tmp_path):
    folder(tmp_path, mode="RGB")
    with pytest.raises(UserError, match=r"a\.png: the mask is stored in colours .*data\.mask_format colour"):
        next(iter(own(tmp_path).train_dataloader()))
    mask(tmp_path / "train/masks/a.png", mode="L")
    with pytest.raises(UserError, match=r"a\.png: the mask holds the colour 255 255 255"):
        data = own(tmp_path, classes=None, mask_format="colour", colours=COLOURS, ignore=["border"])
        next(iter(data.train_dataloader()))


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not at hand")
def test_camvid_as_it_lies_on_disk():
    config = Path(__file__).resolve().parents[3] / "configs" / "data" / "camvid.yaml"
    options = yaml.safe_load(config.read_text())["init_args"] | {"root": str(CAMVID), "num_workers": 0}
    data = FolderSegmentation(**options)
    assert (data.num_classes, data.size("train"), data.size("val")) == (11, 123, 101)
    counts = sum(np.bincount(data.label("val", index).ravel(), minlength=256) for index in range(101))
    shares = 100 * counts / counts.sum()
    published = [9.18, 25.96, 0.56, 28.95, 8.72, 16.34, 0.89, 3.08, 1.75, 0.65, 2.22]
    np.testing.assert_allclose(shares[:11], published, atol=0.005)
    assert round(shares[255], 2) == 1.70 and counts[11:255].sum() == 0
    pairs = own(
        CAMVID, train_images=None, train_list="val.txt", list_prefix="/SegNet/CamVid/", classes=options["classes"],
        ignore=[11],
    )  # fmt: skip
    assert names(pairs) == names(data, "val")
    subset = FolderSegmentation(**(options | {"train_list": "train_subset_every3rd.lst"}))
    assert subset.samples("train").image_files.tolist() == data.samples("train").image_files.tolist()
    with pytest.raises(UserError, match=r"0001TP_006720\.png: no such picture \(the first of 244 that are missing\)"):
        own(CAMVID, train_images=None, train_list="train.txt", list_prefix="/SegNet/CamVid/").size("train")
