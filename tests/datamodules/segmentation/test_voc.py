import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from datamodules.images import CorruptImageError
from datamodules.segmentation import VocSegmentation, voc
from datamodules.segmentation.voc import MatMasks, VocSets, fetch
from errors import UserError
from tests.datamodules.builders import picture
from tests.datamodules.segmentation import builders
from tests.datamodules.segmentation.builders import LABELS, mask

PLAIN = np.where(LABELS == 255, 0, LABELS).astype(np.uint8)  # SBD has no void


def mat(file, labels=PLAIN, name="GTcls"):
    """A file as SBD has them: a struct with sparse boundaries, the labels and the categories present."""
    file.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        boundaries[k, 0] = csc_matrix(labels == k + 1)
    savemat(file, {name: {"Boundaries": boundaries, "Segmentation": labels, "CategoriesPresent": np.unique(labels)}})
    return file


def sbd(root, **lists):
    for name, stems in lists.items():
        (root / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            picture(root / "img" / f"{stem}.jpg")
            mat(root / "cls" / f"{stem}.mat")


@pytest.fixture
def both(tmp_path, monkeypatch):
    """VOC 2012 with train a b, val c d; VOC 2011 with val c e; SBD with train b c f, val d e g."""
    builders.voc(tmp_path / "voc" / "VOC2012", ["a", "b"])
    builders.voc(tmp_path / "voc" / "VOC2012", ["c", "d"], "val")
    builders.voc(tmp_path / "voc" / "VOC2011", ["c", "e"], "val")
    sbd(tmp_path / "sbd", train=["b", "c", "f"], val=["d", "e", "g"])
    monkeypatch.setattr(voc, "COUNTS", {"sbd/train": 3, "sbd/val": 3, "trainaug": 5, "seg11valid": 1})
    return VocSets(tmp_path / "voc", tmp_path / "sbd")


def stems(pairs):
    return [pair.image.stem for pair in pairs]


def test_composed_sets(both):
    pairs = both.pairs(["trainaug"])
    assert stems(pairs) == ["a", "b", "e", "f", "g"]  # without c and d, VOC 2012's val
    assert [pair.mask.suffix for pair in pairs] == [".png", ".png", ".mat", ".mat", ".mat"]  # VOC's masks before SBD's
    assert stems(both.pairs(["seg11valid"])) == ["e"]
    assert both.pairs(["seg11valid"])[0].mask == both.root / "VOC2011" / "SegmentationClass" / "e.png"
    assert stems(both.pairs(["sbd/train", "VOC2012/val"])) == ["b", "c", "f", "c", "d"]


def test_the_published_counts():
    assert voc.COUNTS == {"sbd/train": 8498, "sbd/val": 2857, "trainaug": 10582, "seg11valid": 736}


def test_an_incomplete_copy_is_refused(both):
    (both.sbd_root / "train.txt").write_text("b\nc\n")
    for name, found, expected in (("sbd/train", 2, 3), ("trainaug", 4, 5)):
        with pytest.raises(
            UserError, match=rf"{name}: the set has {found} pictures instead of {expected}; .*incomplete"
        ):
            both.pairs([name])


def test_both_kinds_of_masks_are_read(both):
    data = VocSegmentation(
        root=str(both.root), sbd_root=str(both.sbd_root), val_sets=["seg11valid"], image_size=None, augmentation="none"
    )
    assert data.num_classes == 21 and data.class_names[:2] == ["background", "aeroplane"]
    assert data.class_names[-1] == "tvmonitor"
    np.testing.assert_array_equal(data.label("train", 0), LABELS)
    np.testing.assert_array_equal(data.label("train", 3), PLAIN)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (5, 3, 30, 40) and set(batch["mask"].unique().tolist()) == {0, 1, 255}
    np.testing.assert_array_equal(next(iter(data.val_dataloader()))["label"][0], LABELS)


def test_a_picture_in_both_splits_is_warned_of(both, caplog):
    sets = {"root": str(both.root), "sbd_root": str(both.sbd_root), "train_sets": ["sbd/train"]}
    data = VocSegmentation(**sets, val_sets=["VOC2012/val"])
    data.size("train"), data.size("val")
    assert "1 pictures, c the first, are in the val split and in the train split" in caplog.text
    caplog.clear()
    data = VocSegmentation(**sets, val_sets=["seg11valid"])
    data.size("val"), data.size("train")
    assert not caplog.text


def test_own_data_in_vocs_layout(tmp_path):
    builders.voc(tmp_path, ["x"])
    data = VocSegmentation(root=str(tmp_path), train_sets=["./train"], val_sets=[], classes=["no", "yes"])
    assert data.splits == ["train"] and data.num_classes == 2
    np.testing.assert_array_equal(data.label("train", 0), LABELS)
    mask(tmp_path / "SegmentationClass" / "x.png", np.full((30, 40), 5, np.uint8))
    with pytest.raises(UserError, match=r"x\.png: the mask holds the value 5, which belongs to none of the 2 classes"):
        data.label("train", 0)


def test_missing_files(tmp_path):
    def data(**options):
        return VocSegmentation(root=str(tmp_path), train_sets=["./train"], val_sets=[], **options)

    with pytest.raises(UserError, match=r"train\.txt: no such list; name your folder.*--data\.download true"):
        data().size("train")
    builders.voc(tmp_path, ["x", "y"])
    (tmp_path / "JPEGImages" / "y.jpg").unlink()
    with pytest.raises(UserError, match=r"y\.jpg: no such picture; add it, or take it out of its list"):
        data().size("train")
    picture(tmp_path / "JPEGImages" / "y.jpg")
    (tmp_path / "SegmentationClass" / "x.png").unlink()
    (tmp_path / "SegmentationClass" / "y.png").unlink()
    with pytest.raises(
        UserError, match=r"x\.png: no such mask \(the first of 2 that are missing\); each picture needs one"
    ):
        data().size("train")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"\./train: the set names no pictures"):
        data().size("train")


def test_sbds_files(tmp_path):
    read = MatMasks(range(21))
    labels = read(mat(tmp_path / "m.mat"))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, PLAIN)
    with pytest.raises(UserError, match=r"m\.mat: the mask holds the value 21"):
        read(mat(tmp_path / "m.mat", np.full((3, 4), 21, np.uint8)))
    with pytest.raises(UserError, match=r"m\.mat: has no GTcls\.Segmentation; take the files of SBD's folder cls"):
        read(mat(tmp_path / "m.mat", name="GTinst"))
    (tmp_path / "m.mat").write_bytes(mat(tmp_path / "m.mat").read_bytes()[:300])
    with pytest.raises(CorruptImageError, match=r"m\.mat: the mask cannot be decoded"):
        read(tmp_path / "m.mat")


def archive(folder, inner, files):
    content = folder / "content"
    for name in files:
        picture(content / inner / name)
    with tarfile.open(folder / "a.tgz", "w:gz") as file:
        file.add(content / inner.split("/")[0], inner.split("/")[0])
    return folder / "a.tgz"


def test_fetched_archives_take_their_place(tmp_path):
    source = archive(tmp_path, "benchmark_RELEASE/dataset", ["img/a.jpg", "img/b.jpg"])
    target = tmp_path / "data" / "sbd"
    fetch(source.as_uri(), None, "benchmark_RELEASE/dataset", target)
    assert sorted(path.name for path in (target / "img").iterdir()) == ["a.jpg", "b.jpg"]
    assert [path.name for path in target.parent.iterdir() if not path.name.startswith(".")] == ["sbd"]
    source.unlink()
    fetch(source.as_uri(), None, "benchmark_RELEASE/dataset", target)  # what is there is not fetched again
    with pytest.raises(UserError, match="has not the published MD5 0"):
        fetch(archive(tmp_path, "x/y", ["a.jpg"]).as_uri(), "0", "x/y", target.parent / "other")
    assert not (target.parent / "other").exists()


def test_sbd_comes_over_http_and_is_checked(tmp_path, monkeypatch):
    source = tmp_path / "server"
    sbd(source / "benchmark_RELEASE" / "dataset", train=["b", "c"])
    with tarfile.open(source / "sbd.tgz", "w:gz") as file:
        file.add(source / "benchmark_RELEASE", "benchmark_RELEASE")
    md5 = hashlib.md5((source / "sbd.tgz").read_bytes()).hexdigest()
    monkeypatch.setattr(voc, "COUNTS", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=source))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/sbd.tgz"
        for right, folder in ((True, "sbd"), (False, "other")):
            monkeypatch.setattr(voc, "SBD", (address, md5 if right else "0" * 32, "benchmark_RELEASE/dataset"))
            data = VocSegmentation(root=str(tmp_path / "voc"), sbd_root=str(tmp_path / folder), download=True,
                                   train_sets=["sbd/train"], val_sets=[])  # fmt: skip
            if right:
                assert data.size("train") == 2
                np.testing.assert_array_equal(data.label("train", 1), PLAIN)
            else:
                with pytest.raises(UserError, match="has not the published MD5 000"):
                    data.size("train")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["trainaug"], {"voc2012", "sbd"}),
        (["sbd/train", "seg11valid"], {"voc2011", "sbd"}),
        (["VOC2012/val"], {"voc2012"}),
        (["./train"], set()),
    ],
)
def test_only_what_the_sets_need_is_fetched(tmp_path, monkeypatch, names, expected):
    fetched = set()
    monkeypatch.setattr(voc, "fetch_voc", lambda root, archives: fetched.add("voc2012"))
    monkeypatch.setattr(voc, "fetch", lambda url, *_: fetched.add("voc2011" if "VOC" in url else "sbd"))
    VocSets(tmp_path, tmp_path).fetch(names)
    assert fetched == expected
