"""COCO 2017, or any dataset in COCO's format."""

from pathlib import Path
from typing import Any

from datamodules.annotations import DetectionAnnotations
from datamodules.coco_file import read_coco
from datamodules.detection import DetectionDataModule
from datamodules.download import download, unpack
from datamodules.locking import locked
from datamodules.resumable_module import SPLITS
from errors import UserError

SERVER = "http://images.cocodataset.org"
# Their publisher gives no hashes: the size that the server announces is checked, and each member's own CRC.
ARCHIVES = {
    "annotations": f"{SERVER}/annotations/annotations_trainval2017.zip",
    "train2017": f"{SERVER}/zips/train2017.zip",
    "val2017": f"{SERVER}/zips/val2017.zip",
}


class CocoDetection(DetectionDataModule):
    """Annotation files in COCO's format with their image folders.

    The defaults are COCO 2017's layout below `root`. For a dataset of your own, name your files and folders, absolute
    or below `root`; `test_annotations` is optional, `val_annotations` too (`null`).

    Args:
        root: the dataset's folder.
        train_annotations: JSON file of the training split.
        train_images: its image folder.
        val_annotations: of the validation split.
        val_images: its image folder.
        test_annotations: of the test split.
        test_images: its image folder.
        download: fetch COCO 2017 (19 GB) into `root` if it is not there.
        **common: see `DetectionDataModule`.
    """

    name = "coco"

    def __init__(
        self,
        root: str = "data/coco",
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str | None = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_annotations: str | None = None,
        test_images: str | None = None,
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.download = download
        self.files = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }

    @property
    def splits(self) -> list[str]:
        """The splits that have an annotation file."""
        return [split for split in SPLITS if self.files[split][0]]

    def _read(self, split: str) -> DetectionAnnotations:
        if self.download:
            fetch_coco(self.root)
        annotations, images = self.files[split]
        if images is None:
            raise UserError(
                f"data.{split}_annotations is {annotations}, but data.{split}_images is not given; name the folder"
            )
        file = self.root / annotations
        if not file.exists():
            raise UserError(
                f"{file}: no such annotation file; name yours with --data.root and --data.{split}_annotations, "
                "or get COCO 2017 with --data.download true"
            )
        return read_coco(file, self.root / images, outlines=self.needs_outlines(split))


def fetch_coco(root: Path, archives: dict[str, str] = ARCHIVES) -> None:
    """Download and unpack what is missing of COCO 2017; each archive is deleted when it is unpacked."""
    with locked(root / "download"):
        for folder, url in archives.items():
            done = root / f".{folder}.complete"
            if done.exists():
                continue
            archive = download(url, root / url.rsplit("/", 1)[1])
            unpack(archive, root)
            done.touch()
            archive.unlink()
