"""PASCAL VOC, or any dataset in its format."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from datamodules.annotations import DetectionAnnotations
from datamodules.detection import DetectionDataModule
from datamodules.download import download, unpack
from datamodules.locking import locked
from datamodules.resumable_module import SPLITS
from errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

SERVER = "http://host.robots.ox.ac.uk/pascal/VOC"
ARCHIVES = {  # the MD5 sums are those that torchvision publishes
    "VOCtrainval_06-Nov-2007.tar": (f"{SERVER}/voc2007", "c52e279531787c972589f7e41ab4ae64"),
    "VOCtest_06-Nov-2007.tar": (f"{SERVER}/voc2007", "b6e924de25625d8de591ea690078ad9f"),
    "VOCtrainval_11-May-2012.tar": (f"{SERVER}/voc2012", "6cd6e144f989b92b3379bac3b3de84fd"),
}


class VocDetection(DetectionDataModule):
    """Folders in VOC's layout: `JPEGImages`, `Annotations/*.xml`, `ImageSets/Main/<list>.txt`.

    A split is one or several of "<folder>/<list>" below `root`: `VOC2007/trainval` reads the pictures that
    `VOC2007/ImageSets/Main/trainval.txt` names. The defaults are the usual 07+12 training with VOC 2007's test set for
    validation; for a dataset of your own, name your folder and lists ("./train" if `root` is the folder itself).

    Args:
        root: folder that holds VOC2007 and VOC2012 (`VOCdevkit`).
        train_sets: of the training split.
        val_sets: of the validation split; empty for none.
        test_sets: of the test split; empty for none.
        classes: names in the order of the labels; None takes VOC's twenty.
        download: fetch VOC 2007 and 2012 (3.7 GB) into the folder above `root` if they are not there.
        **common: see `DetectionDataModule`.
    """

    name = "voc"

    def __init__(
        self,
        root: str = "data/VOCdevkit",
        train_sets: list[str] = ["VOC2007/trainval", "VOC2012/trainval"],  # noqa: B006
        val_sets: list[str] = ["VOC2007/test"],  # noqa: B006
        test_sets: list[str] = [],  # noqa: B006
        classes: list[str] | None = None,
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.sets = {"train": train_sets, "val": val_sets, "test": test_sets}
        self.classes = list(classes or CLASSES)
        self.download = download

    @property
    def splits(self) -> list[str]:
        """The splits that name a list."""
        return [split for split in SPLITS if self.sets[split]]

    @property
    def class_names(self) -> list[str]:
        """As configured: no file is read for it."""
        return self.classes

    def _read(self, split: str) -> DetectionAnnotations:
        if self.download:
            fetch_voc(self.root)
        return read_voc(self.root, self.sets[split], self.classes)


def read_voc(root: Path, sets: list[str], classes: list[str]) -> DetectionAnnotations:
    """Read lists of VOC annotations.

    VOC counts pixels from 1 and includes the last one. Boxes are turned into half-open ones from 0: (xmin - 1, ymin -
    1, xmax, ymax); their plain overlap is then the devkit's, which adds 1 to every width and height. Image ids are the
    file names without ending, category ids the names of the classes' positions from 1.

    Args:
        root: the folder that `sets` are relative to.
        sets: "<folder>/<list>".
        classes: names in the order of the labels.

    Raises:
        UserError: naming the file that is missing or wrong.
    """
    images: list[tuple[str, str, int, int]] = []
    image_index: list[int] = []
    objects: dict[str, list[Any]] = {
        key: [] for key in ("boxes", "labels", "area", "iscrowd", "difficult", "annotation_ids")
    }
    labels = {name: label for label, name in enumerate(classes)}
    for entry in sets:
        folder, _, name = entry.rpartition("/")
        base = root / folder
        listing = base / "ImageSets" / "Main" / f"{name}.txt"
        if not listing.exists():
            raise UserError(
                f"{listing}: no such list; name your folder with --data.root and its lists with --data.train_sets and "
                "--data.val_sets, or get VOC 2007 and 2012 with --data.download true"
            )
        for line in listing.read_text().splitlines():
            if not line.strip():
                continue
            stem = line.split()[0]
            file = base / "Annotations" / f"{stem}.xml"
            tree = _parse(file)
            picture = base / "JPEGImages" / f"{stem}.jpg"
            if not picture.exists():
                picture = picture.with_name(tree.findtext("filename", f"{stem}.jpg"))
            if not picture.exists():
                raise UserError(f"{picture}: no such picture, but {listing} names it; add it or remove the line")
            identity = stem if len(sets) == 1 else f"{folder}/{stem}"
            size = tree.find("size")
            if size is None:
                raise UserError(f"{file}: has no size; add width and height")
            images.append((str(picture), identity, int(_value(file, size, "height")), int(_value(file, size, "width"))))
            for node in tree.iter("object"):
                class_name = node.findtext("name", "").strip()
                if class_name not in labels:
                    raise UserError(
                        f"{file}: has an object named {class_name!r}, which is not among the classes "
                        f"{', '.join(classes)}; list yours with --data.classes"
                    )
                box = node.find("bndbox")
                if box is None:
                    raise UserError(f"{file}: its {class_name} has no bndbox; add one or remove the object")
                x1, y1, x2, y2 = (_value(file, box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
                if x2 < x1 or y2 < y1:
                    raise UserError(
                        f"{file}: its {class_name} ends before it begins ({x1}, {y1}, {x2}, {y2}); correct it"
                    )
                # Some tools write an empty box where nothing was drawn: it stays empty, and is nobody's target.
                empty = x2 == x1 or y2 == y1
                width, height = (0.0, 0.0) if empty else (x2 - x1 + 1, y2 - y1 + 1)
                image_index.append(len(images) - 1)
                objects["boxes"].append([x1 - 1, y1 - 1, width, height])
                objects["labels"].append(labels[class_name])
                objects["area"].append(width * height)
                objects["iscrowd"].append(False)
                objects["difficult"].append(node.findtext("difficult", "0").strip() == "1")
                objects["annotation_ids"].append(len(objects["annotation_ids"]) + 1)
    if not images:
        raise UserError(f"{root}: the lists {', '.join(sets)} name no pictures; check that they are the right ones")
    return DetectionAnnotations.from_lists(
        images=images,
        image_index=image_index,
        objects=objects,
        class_names=classes,
        category_ids=list(range(1, len(classes) + 1)),
    )


def fetch_voc(root: Path, archives: dict[str, tuple[str, str]] = ARCHIVES) -> None:
    """Download and unpack what is missing of VOC; the archives hold a folder `VOCdevkit`, which `root` must be."""
    if root.name != "VOCdevkit":
        raise UserError(f"data.root is {root}, but the archives of VOC hold a folder VOCdevkit; end data.root with it")
    with locked(root.parent / "download"):
        for name, (address, md5) in archives.items():
            done = root.parent / f".{name}.complete"
            if done.exists():
                continue
            archive = download(f"{address}/{name}", root.parent / name, md5)
            unpack(archive, root.parent)
            done.touch()
            archive.unlink()


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such annotation; add it or remove the picture from its list") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: is no valid XML ({error}); correct it") from error


def _value(file: Path, node: ElementTree.Element, tag: str) -> float:
    text = node.findtext(tag)
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {node.tag} has {tag} {text!r}, which is no number; correct it") from error
