"""PASCAL VOC's segmentation with SBD's additional masks, or any dataset in VOC's format."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.io import loadmat

from datamodules.download import download, unpack
from datamodules.images import CorruptImageError
from datamodules.locking import locked
from datamodules.resumable_module import SPLITS
from datamodules.segmentation.masks import IndexMasks
from datamodules.segmentation.module import SegmentationDataModule
from datamodules.segmentation.samples import MaskFiles, SegmentationSamples
from datamodules.voc import ARCHIVES, CLASSES, SERVER, fetch_voc
from errors import UserError

log = logging.getLogger(__name__)

# Address, MD5 as torchvision publishes it, and the folder within.
VOC2011 = (f"{SERVER}/voc2011/VOCtrainval_25-May-2011.tar", "6c3384ef61512963050cb5d687e5bf1e",
           "TrainVal/VOCdevkit/VOC2011")  # fmt: skip
SBD = ("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
       "82b4d87ceb2ed10f6038a1cba92111cb", "benchmark_RELEASE/dataset")  # fmt: skip

# What these sets are known to hold; another number means an incomplete copy or another release.
COUNTS = {"sbd/train": 8498, "sbd/val": 2857, "trainaug": 10582, "seg11valid": 736}

HELP = (
    "name your folder with --data.root and its lists with --data.train_sets and --data.val_sets, or get VOC and SBD "
    "with --data.download true"
)


class VocSegmentation(SegmentationDataModule):
    """Folders in VOC's layout: `JPEGImages`, `SegmentationClass/*.png`, `ImageSets/Segmentation/<list>.txt`.

    A split is one or several sets. `VOC2012/train` reads the pictures that `VOC2012/ImageSets/Segmentation/train.txt`
    below `root` names ("./train" if `root` is the folder itself). Three sets are composed with SBD, whose masks have
    no void border:

    - `sbd/train`, `sbd/val` (8,498 and 2,857): SBD's own lists. FCN trains on the first.
    - `trainaug` (10,582): VOC 2012's train with its masks, and all of SBD that is not in VOC 2012's val.
    - `seg11valid` (736): VOC 2011's val without SBD's train, on which FCN is validated.

    The defaults are trainaug and VOC 2012's val, on which most papers compare.

    Args:
        root: folder that holds VOC2012 (`VOCdevkit`).
        train_sets: of the training split.
        val_sets: of the validation split; empty for none.
        test_sets: of the test split; empty for none.
        sbd_root: folder that holds SBD's `img`, `cls`, `train.txt` and `val.txt` (`benchmark_RELEASE/dataset`).
        classes: names in the order of the labels, the background first; None takes VOC's.
        download: fetch what the sets need of VOC 2012 (2 GB), VOC 2011 (1.7 GB) and SBD (1.4 GB) if it is not there.
        **common: see `SegmentationDataModule`.
    """

    name = "voc_segmentation"

    def __init__(
        self,
        root: str = "data/VOCdevkit",
        train_sets: list[str] = ["trainaug"],  # noqa: B006
        val_sets: list[str] = ["VOC2012/val"],  # noqa: B006
        test_sets: list[str] = [],  # noqa: B006
        sbd_root: str = "data/sbd",
        classes: list[str] | None = None,
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.sbd_root = Path(sbd_root)
        self.sets = {"train": train_sets, "val": val_sets, "test": test_sets}
        self.classes = list(classes or ("background", *CLASSES))
        self.download = download

    @property
    def splits(self) -> list[str]:
        """The splits that name a set."""
        return [split for split in SPLITS if self.sets[split]]

    @property
    def class_names(self) -> list[str]:
        """As configured: no file is read for it."""
        return self.classes

    def _read(self, split: str) -> SegmentationSamples:
        sets = VocSets(self.root, self.sbd_root)
        if self.download:
            sets.fetch(self.sets[split])
        pairs = sets.pairs(self.sets[split])
        self._warn_of_overlap(split, pairs)
        return read_pairs(pairs, self.classes)

    def _warn_of_overlap(self, split: str, pairs: "list[Pair]") -> None:
        """SBD's lists are not VOC's: its train holds pictures of VOC 2012's val."""
        for other, samples in self._samples.items():
            stems = {Path(file).stem for file in samples.image_files.tolist()}
            common = stems & {pair.image.stem for pair in pairs}
            if common and "train" in (split, other):
                log.warning(
                    "%d pictures, %s the first, are in the %s split and in the %s split of %s: its scores will be "
                    "better than the network", len(common), min(common), split, other, self.name,
                )  # fmt: skip


class Pair(NamedTuple):
    """A picture and its mask."""

    image: Path
    mask: Path


class VocSets:
    """Finds the pictures of sets; see `VocSegmentation`."""

    def __init__(self, root: Path, sbd_root: Path) -> None:
        self.root = root
        self.sbd_root = sbd_root

    def pairs(self, names: list[str]) -> list[Pair]:
        """The pictures of several sets with their masks.

        Raises:
            UserError: no such list, an empty one, or one that has not the number of pictures it is known for.
        """
        result = []
        for name in names:
            found = self._named(name)
            if not found:
                raise UserError(f"{name}: the set names no pictures; check that it is the right one")
            if len(found) != COUNTS.get(name, len(found)):
                raise UserError(
                    f"{name}: the set has {len(found)} pictures instead of {COUNTS[name]}; the copy of VOC or SBD in "
                    f"{self.root} or {self.sbd_root} is incomplete or another release, fetch it anew with "
                    "--data.download true"
                )
            result += found.values()
        return result

    def fetch(self, names: list[str]) -> None:
        """Download what the sets need and is not there."""
        needed = {source for name in names for source in SOURCES.get(name, (name.partition("/")[0],))}
        if "VOC2012" in needed:
            name = "VOCtrainval_11-May-2012.tar"
            fetch_voc(self.root, {name: ARCHIVES[name]})
        if "VOC2011" in needed:
            fetch(*VOC2011, self.root / "VOC2011")
        if "sbd" in needed:
            fetch(*SBD, self.sbd_root)

    def _named(self, name: str) -> dict[str, Pair]:
        """The pairs of a set by the stem of their picture."""
        if name == "trainaug":
            own, held_out = self._named("VOC2012/train"), self._named("VOC2012/val")
            merged = self._named("sbd/train") | self._named("sbd/val") | own
            return {stem: merged[stem] for stem in sorted(merged.keys() - held_out.keys())}
        if name == "seg11valid":
            learnt = self._named("sbd/train")
            return {stem: pair for stem, pair in self._named("VOC2011/val").items() if stem not in learnt}
        folder, _, listing = name.rpartition("/")
        if folder == "sbd":
            stems = _stems(self.sbd_root / f"{listing}.txt")
            return {s: Pair(self.sbd_root / "img" / f"{s}.jpg", self.sbd_root / "cls" / f"{s}.mat") for s in stems}
        base = self.root / folder
        stems = _stems(base / "ImageSets" / "Segmentation" / f"{listing}.txt")
        return {s: Pair(base / "JPEGImages" / f"{s}.jpg", base / "SegmentationClass" / f"{s}.png") for s in stems}


# The archives that composed sets need; the others need the one that their folder is named after.
SOURCES = {"trainaug": ("VOC2012", "sbd"), "seg11valid": ("VOC2011", "sbd")}


class MatMasks(IndexMasks):
    """Reads SBD's `cls/*.mat`: the labels are `GTcls.Segmentation`."""

    def numbers(self, path: str | Path) -> np.ndarray:
        """What the file stores, (H, W) uint8.

        Raises:
            CorruptImageError: the file is damaged.
            UserError: the file holds no `GTcls.Segmentation`.
        """
        try:
            content = loadmat(path, variable_names=["GTcls"])
        except Exception as error:  # SciPy raises whatever its parser runs into
            raise CorruptImageError(f"{path}: the mask cannot be decoded ({error}); replace the file") from error
        try:
            return np.array(content["GTcls"]["Segmentation"][0, 0])
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(
                f"{path}: has no GTcls.Segmentation; take the files of SBD's folder cls, not those of inst"
            ) from error


def read_pairs(pairs: list[Pair], classes: list[str]) -> MaskFiles:
    """Pictures with masks of labels 0..K-1 and 255 for void, as palette PNG or SBD's `.mat`."""
    labels = range(len(classes))
    return MaskFiles(
        [pair.image for pair in pairs],
        [pair.mask for pair in pairs],
        {"": IndexMasks(labels), ".mat": MatMasks(labels)},
        identity=classes,
    )


def fetch(url: str, md5: str, inner: str, folder: Path) -> None:
    """Download an archive and put its folder `inner` in the place of `folder`, unless that exists."""
    with locked(folder):
        if folder.exists():
            return
        archive = download(url, folder.parent / url.rsplit("/", 1)[1], md5)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unpack(archive, unfinished)
        os.replace(unfinished / inner, folder)
        shutil.rmtree(unfinished)
        archive.unlink()


def _stems(listing: Path) -> list[str]:
    if not listing.exists():
        raise UserError(f"{listing}: no such list; {HELP}")
    return [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
