"""The data module of every detection dataset: splits, and what the data says of itself."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from datamodules.annotations import DetectionAnnotations
from datamodules.collate import collate_detection
from datamodules.dataset import DetectionDataset, PictureDataset, Recipe
from datamodules.loader import EpochBatches
from datamodules.multi_scale import MultiScaleBatches
from datamodules.picture_module import PictureDataModule
from datamodules.proposals import ProposalSource
from datamodules.recipes import (
    ANY_SIZE,
    AUGMENTATIONS,
    CARRY_PROPOSALS,
    OUTLINED,
    RESIZES,
    STRETCHED,
    make_recipe,
    plain,
)
from datamodules.transforms import Pixels
from errors import UserError


class DetectionDataModule(PictureDataModule):
    """Base class; a dataset defines `name`, `splits` and `_read`.

    Nothing is read before it is asked for: constructing a data module touches no file.

    Args:
        image_size: side in pixels of the square that pictures are fitted into; None is the network's published size.
        augmentation: `none`, `flip`, `efficientdet` (or `large_scale_jitter`: scale jitter .1 to 2, crop or pad, flip),
            `efficientdet_mild` (jitter .8 to 1.2), `ssd`, `yolo` (v3's), `yolo_crop` (v1's and v2's), `mosaic`, `mixup`
            or `copy_paste`; see `datamodules.recipes`.
        augmentation_options: numbers of the augmentation that differ from its defaults, such as `{jitter: 0.3}`.
        resize: at evaluation and prediction, and where the augmentation leaves it open: `fit` pictures into the square
            and pad the rest, or `stretch` them to it. None is what the augmentation's paper does: `stretch` for `ssd`
            and `yolo_crop`, else `fit`.
        training_sizes: train at these sizes in place of `image_size`: one is drawn for all pictures of a batch.
        size_every: batches that are trained at one size before another is drawn.
        transforms: albumentations that come before it, as a list of `class_path` and `init_args`.
        keep_difficult: also learn objects that VOC marks as difficult.
        proposals: finds the boxes that R-CNN, SPPNet and Fast R-CNN classify, such as `SelectiveSearch`; they are
            searched once, before the first epoch.
        **common: see `PictureDataModule`.
    """

    def __init__(
        self,
        *,
        image_size: int | None = None,
        augmentation: str = "efficientdet",
        augmentation_options: dict[str, Any] | None = None,
        resize: Literal["fit", "stretch"] | None = None,
        training_sizes: list[int] | None = None,
        size_every: int = 10,
        transforms: list[dict[str, Any]] | None = None,
        keep_difficult: bool = False,
        proposals: ProposalSource | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        smallest = min(training_sizes, default=0) if training_sizes is not None else None
        self.check_positive(image_size=image_size, size_every=size_every, training_sizes=smallest)
        if augmentation not in AUGMENTATIONS:
            raise UserError(f"data.augmentation is {augmentation!r}; choose one of {', '.join(AUGMENTATIONS)}")
        if proposals is not None and augmentation not in CARRY_PROPOSALS:
            raise UserError(
                f"data.augmentation is {augmentation!r}, which does not carry data.proposals along; choose one of "
                f"{', '.join(sorted(CARRY_PROPOSALS))}"
            )
        self.image_size = image_size
        self.augmentation = augmentation
        self.resize = resize or ("stretch" if augmentation in STRETCHED else "fit")
        self.make_sample = make_recipe(augmentation, augmentation_options or {}, resize=self.resize)
        self.training_sizes = training_sizes
        self.size_every = size_every
        self.pixels = Pixels(transforms) if transforms else None
        self.keep_difficult = keep_difficult
        self.proposals = proposals
        self._annotations: dict[str, DetectionAnnotations] = {}

    @abstractmethod
    def _read(self, split: str) -> DetectionAnnotations:
        """Read the annotations of a split; fetch or generate the dataset first if need be."""

    def needs_outlines(self, split: str) -> bool:
        """Whether the masks of a split's objects are to be read, too."""
        return split == "train" and self.augmentation in OUTLINED

    def annotations(self, split: str) -> DetectionAnnotations:
        """The annotations of a split, read once.

        Raises:
            UserError: there is no such split, or it lists other categories than the training split.
        """
        if split not in self._annotations:
            self.check_split(split)
            read = self._read(split)
            first = next(iter(self._annotations.values()), read)
            if read.category_ids != first.category_ids or read.class_names != first.class_names:
                raise UserError(
                    f"the {split} split of {self.name} lists the categories {read.class_names}, another split lists "
                    f"{first.class_names}; all files of a dataset must list the same categories"
                )
            self._annotations[split] = read
        return self._annotations[split]

    def size(self, split: str) -> int:
        """Number of pictures in a split."""
        return len(self.annotations(split))

    def ground_truth(self, split: str) -> dict[str, Any]:
        """The objects of a split for a metric; see `DetectionAnnotations.ground_truth`."""
        return self.annotations(split).ground_truth()

    @property
    def class_names(self) -> list[str]:
        """Names by dense label."""
        return self.annotations(self.splits[0]).class_names

    @property
    def category_ids(self) -> list[int] | list[str]:
        """The annotation file's ids by dense label."""
        return self.annotations(self.splits[0]).category_ids

    @property
    def num_classes(self) -> int:
        """K, background not counted."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """A hash over the annotations of all splits."""
        return "-".join(self.annotations(split).fingerprint for split in self.splits)

    def description(self) -> dict[str, Any]:
        """What a checkpoint keeps of its data, in JSON types: enough to use the model without the dataset."""
        return {
            "task": "detection",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "class_names": self.class_names,
            "category_ids": self.category_ids,
            "image_size": self.image_size,
            "resize": self.resize,
            **({} if self.proposals is None else {"proposals": self.proposals.description()}),
        }

    @property
    def collate(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """See `collate_detection`."""
        return collate_detection

    def dataset(self, split: str, augmented: bool = False) -> DetectionDataset:
        """A split as samples."""
        recipe: Recipe = partial(plain, side=self.image_size, resize=self.resize)
        if augmented:
            if self.image_size is None and self.augmentation not in ANY_SIZE:
                raise UserError(f"data.augmentation {self.augmentation} cuts pictures to data.image_size: give one")
            recipe = partial(self.make_sample, side=self.image_size, pixels=self.pixels)
        annotations = self.annotations(split)
        if self.proposals is not None:
            sizes = list(zip(annotations.heights.tolist(), annotations.widths.tolist(), strict=True))
            self.proposals.prepare(annotations.image_files, sizes, annotations.fingerprint, **self._place())
        return DetectionDataset(
            annotations,
            recipe,
            seed=self.seed,
            keep_difficult=self.keep_difficult,
            on_bad_sample=self.on_bad_sample,
            report=self.report,
            training=augmented,
            proposals=self.proposals,
        )

    def pictures(self, files: list[str]) -> PictureDataset:
        """Pictures to predict on, as samples."""
        return PictureDataset(files, partial(RESIZES[self.resize], side=self.image_size), self.proposals)

    def _training_batches(self, **options: Any) -> EpochBatches:
        if self.training_sizes is None:
            return super()._training_batches(**options)
        return MultiScaleBatches(sizes=self.training_sizes, every=self.size_every, **options)
