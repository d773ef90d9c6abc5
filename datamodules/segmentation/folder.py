"""Folders of pictures and masks: a dataset of one's own."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.picture_module import PICTURES
from datamodules.resumable_module import SPLITS
from datamodules.segmentation.colours import Colour, read_colours
from datamodules.segmentation.masks import IGNORED, ColourMasks, IndexMasks, voc_palette
from datamodules.segmentation.module import SegmentationDataModule
from datamodules.segmentation.samples import MaskFiles, SegmentationSamples
from errors import UserError


class FolderSegmentation(SegmentationDataModule):
    """Pictures and masks that belong together by their names.

    A split is a folder of pictures and a folder of masks, both with the same names (and the same subfolders); or those
    pictures of the folder that a list names, one per line, with or without their ending; or a list of pairs, picture
    and mask in each line. A mask holds the numbers of classes (`index`: gray values or palette indices) or their
    colours (`colour`).

    All paths are absolute or below `root`. Not below it are the pictures of prediction, `images`.

    Args:
        root: the dataset's folder.
        train_images: folder of the training pictures; None for pairs.
        train_masks: folder of their masks.
        train_list: text file of those that belong to the split; None takes all.
        val_images: of the validation split; None with `val_list` None for no such split.
        val_masks: likewise.
        val_list: likewise.
        test_images: of the test split.
        test_masks: likewise.
        test_list: likewise.
        image_suffix: how the names of pictures end ("_leftImg8bit.png"); None takes all pictures.
        mask_suffix: what stands in its place in the names of masks ("_gtFine_labelIds.png").
        list_prefix: beginning of the paths in lists of pairs that is to be left out.
        classes: names in the order of the labels, or a text file with a name per line; None takes those of the colours.
        class_ids: the numbers of the classes in masks of numbers; None is 0 to K - 1.
        ignore: numbers, or names of colours, that count in no loss and no metric; 255 never does.
        mask_format: what masks hold, `index` or `colour`.
        colours: red, green and blue by name, or a text file with a name and three numbers per line; of the masks if
            they are colours, otherwise only for drawing.
        **common: see `SegmentationDataModule`.
    """

    def __init__(
        self,
        root: str = "data/folder",
        train_images: str | None = "train/images",
        train_masks: str | None = "train/masks",
        train_list: str | None = None,
        val_images: str | None = "val/images",
        val_masks: str | None = "val/masks",
        val_list: str | None = None,
        test_images: str | None = None,
        test_masks: str | None = None,
        test_list: str | None = None,
        image_suffix: str | None = None,
        mask_suffix: str = ".png",
        list_prefix: str = "",
        classes: list[str] | str | None = None,
        class_ids: list[int] | None = None,
        ignore: list[int | str] = [],  # noqa: B006
        mask_format: Literal["index", "colour"] = "index",
        colours: str | dict[str, list[int]] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.name = self.root.absolute().name
        self.places = {
            "train": (train_images, train_masks, train_list),
            "val": (val_images, val_masks, val_list),
            "test": (test_images, test_masks, test_list),
        }
        self.image_suffix = image_suffix
        self.mask_suffix = mask_suffix
        self.list_prefix = list_prefix
        self.classes = classes
        self.class_ids = class_ids
        self.ignore = ignore
        self.mask_format = mask_format
        self.colours = colours
        self._table: list[tuple[str, Colour]] | None = None
        self._names: list[str] | None = None

    @property
    def splits(self) -> list[str]:
        """The splits that have a folder or a list."""
        return [split for split in SPLITS if self.places[split][0] or self.places[split][2]]

    @property
    def class_names(self) -> list[str]:
        """As configured, or as the table of colours names them, less the ignored."""
        if self._names is None:
            self._names = self._read_names()
        return self._names

    @property
    def palette(self) -> np.ndarray:
        """As the table of colours says; otherwise VOC's, whose black is left to a class named background."""
        palette = voc_palette()
        if self.colours is not None:
            first = dict(reversed(self._colours()))
            known = [(label, first[name]) for label, name in enumerate(self.class_names) if name in first]
            for label, colour in known:
                palette[label] = colour
        elif self.class_names[0].lower() != "background":
            palette[:IGNORED] = palette[1:].copy()
        return palette

    def _read(self, split: str) -> SegmentationSamples:
        read = self._colour_masks() if self.mask_format == "colour" else self._index_masks()
        images, masks = self._pairs(split)
        return MaskFiles(images, masks, {"": read}, identity=(self.class_names, self.class_ids, self.ignore))

    def _read_names(self) -> list[str]:
        names = self.classes
        if isinstance(names, str):
            file = self.root / names
            if not file.is_file():
                raise UserError(f"{file}: no such list of classes; name a file, or list them with --data.classes")
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if names is None and self.colours is not None:
            names = [name for name in dict(self._colours()) if name not in self.ignore]
        if not names:
            raise UserError("data.classes names no class; list the names in the order of the labels")
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise UserError(f"data.classes lists {min(repeated)!r} twice; give each class its own name")
        if len(names) > IGNORED:
            raise UserError(f"data.classes lists {len(names)} names; there can be {IGNORED} at most")
        return list(names)

    def _colours(self) -> list[tuple[str, Colour]]:
        if self._table is None:
            source = self.colours
            self._table = read_colours(str(self.root / source) if isinstance(source, str) else source)
        return self._table

    def _index_masks(self) -> IndexMasks:
        names = [value for value in self.ignore if not isinstance(value, int)]
        if names:
            raise UserError(f"data.ignore holds {names[0]!r}, but masks hold numbers; give the number")
        ids = list(range(len(self.class_names))) if self.class_ids is None else self.class_ids
        if len(ids) != len(self.class_names) or len(set(ids)) != len(ids) or min(ids) < 0:
            raise UserError(
                f"data.class_ids is {ids}, but there are {len(self.class_names)} classes; give each a number of its own"
            )
        both = [value for value in [*self.ignore, IGNORED] if value in ids]
        if both:
            raise UserError(
                f"the value {both[0]} of masks is to be ignored, but is also that of the class "
                f"{self.class_names[ids.index(both[0])]}; say which values the classes have with --data.class_ids"
            )
        return IndexMasks(ids, self.ignore)

    def _colour_masks(self) -> ColourMasks:
        if self.colours is None:
            raise UserError("data.mask_format is colour; say with --data.colours which colour is which class")
        labels = {name: label for label, name in enumerate(self.class_names)} | dict.fromkeys(self.ignore, IGNORED)
        table = self._colours()
        unknown = {name for name, _ in table} - labels.keys() or labels.keys() - {name for name, _ in table}
        if unknown:
            raise UserError(
                f"the name {min(unknown, key=str)!r} is in data.colours only, or in data.classes or data.ignore only; "
                "every colour needs a class or is to be ignored, every class needs a colour"
            )
        return ColourMasks({colour: labels[name] for name, colour in table})

    def _pairs(self, split: str) -> tuple[list[Path], list[Path]]:
        """Pictures and masks of a split."""
        images, masks, listing = self.places[split]
        if images is not None:
            folder = self.root / images
            if masks is None:
                raise UserError(
                    f"data.{split}_images is {images}, but data.{split}_masks is not given; name the folder"
                )
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder; name yours with --data.root, --data.{split}_images and "
                    f"--data.{split}_masks"
                )
            found = self._pictures(folder, self.root / masks)
            if listing is None:
                names = list(found.values())
            else:
                names = [self._named(line, found, folder, listing) for line in self._lines(listing)]
            if not names:
                ending = self.image_suffix or "picture's ending"
                raise UserError(
                    f"{folder}: has no file with a name that ends with {ending}; correct --data.image_suffix"
                )
            return [folder / name for name in names], [self.root / masks / self._mask(name) for name in names]
        pairs = [self._pair(line, listing) for line in self._lines(listing)]
        return [image for image, _ in pairs], [mask for _, mask in pairs]

    def _pictures(self, folder: Path, masks: Path) -> dict[str, str]:
        """The pictures of a folder, without ending -> with ending, relative to it, sorted."""
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if self.image_suffix is None:
                # With masks among the pictures, told apart by "_mask.png" or the like.
                mask = masks == folder and name.endswith(self.mask_suffix) and self.mask_suffix not in PICTURES
                wanted = path.suffix.lower() in PICTURES and not mask
            else:
                wanted = name.endswith(self.image_suffix)
            if wanted and path.is_file():
                found[self._stem(name)] = name
        return found

    def _stem(self, name: str) -> str:
        return name.removesuffix(self.image_suffix or Path(name).suffix)

    def _mask(self, name: str) -> str:
        return self._stem(name) + self.mask_suffix

    def _lines(self, listing: str) -> list[str]:
        file = self.root / listing
        if not file.is_file():
            raise UserError(
                f"{file}: no such list of pictures; correct the path, or leave it out to take the whole folder"
            )
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not lines:
            raise UserError(f"{file}: names no pictures; write a name per line")
        return lines

    def _named(self, line: str, found: dict[str, str], folder: Path, listing: str) -> str:
        for name in (line, self._stem(line)):
            if name in found:
                return found[name]
        raise UserError(
            f"{self.root / listing}: names {line!r}, but {folder} has no such picture; add it or remove the line"
        )

    def _pair(self, line: str, listing: str) -> tuple[Path, Path]:
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 2:
            raise UserError(
                f"{self.root / listing}: has the line {line!r}; write a picture and its mask, or name the pictures' "
                "folder in the configuration"
            )
        image, mask = (self.root / field.strip().removeprefix(self.list_prefix) for field in fields)
        return image, mask
