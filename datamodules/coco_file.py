"""Read COCO's annotation format into flat arrays, and refuse what cannot be right."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from datamodules.annotations import DetectionAnnotations
from datamodules.outlines import run_lengths
from errors import UserError


def read_coco(
    annotation_file: str | Path, image_folder: str | Path | None, *, outlines: bool = False
) -> DetectionAnnotations:
    """Read an `instances` file of any COCO-format dataset.

    Dense labels follow the ascending category ids (as COCOeval orders them), whatever ids the file uses. Ids may be
    numbers or strings; a reference "7" finds the id 7. Images keep the order of the file; those without objects stay.
    Boxes are kept as they are, zero-size and partly outside ones included: the metric counts them as pycocotools
    does, training drops or clips them. A missing `area` is the box's, a missing `iscrowd` 0.

    Args:
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_folder: where `file_name`s are; None where pictures are not needed.
        outlines: also read the objects' masks.

    Raises:
        UserError: naming the file and the annotation that is wrong.
    """
    file = Path(annotation_file)
    content = _load(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{file}: has no list {key!r}; a COCO instances file has images, annotations and categories"
            )

    categories = _by_id(file, "category", content["categories"])
    if not categories:
        raise UserError(f"{file}: has no categories; list at least one with id and name")
    ordered = sorted(categories.values(), key=lambda category: _sortable(category["id"]))
    labels = {_key(category["id"]): label for label, category in enumerate(ordered)}
    names = [str(category.get("name", category["id"])) for category in ordered]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{file}: the category name {repeated[0]!r} stands for several ids; give each its own name")

    folder = Path(image_folder) if image_folder is not None else Path()
    positions: dict[str, int] = {}
    images = []
    for image in _by_id(file, "image", content["images"]).values():
        where = f"{file}: image {image['id']!r}"
        for key in ("file_name", "width", "height"):
            if key not in image:
                raise UserError(f"{where} has no {key!r}; add it")
        width, height = _number(image["width"], f"{where} width"), _number(image["height"], f"{where} height")
        if width < 1 or height < 1:
            raise UserError(f"{where} has size {width} x {height}; width and height must be positive")
        positions[_key(image["id"])] = len(images)
        images.append((str(folder / image["file_name"]), image["id"], int(height), int(width)))
    if not images:
        raise UserError(f"{file}: has no images; check that this is the right file")
    if image_folder is not None:
        _check_files(file, folder, images)

    objects: dict[str, list[Any]] = {
        key: [] for key in ("boxes", "labels", "area", "iscrowd", "difficult", "annotation_ids")
    }
    if outlines:
        objects["outlines"] = []
    image_index = []
    beyond = 0
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{file}: annotation {annotation.get('id', f'number {number}')!r}"
        image = positions.get(_key(annotation.get("image_id")))
        if image is None:
            raise UserError(f"{where} refers to image {annotation.get('image_id')!r}, which is not listed; remove it")
        label = labels.get(_key(annotation.get("category_id")))
        if label is None:
            raise UserError(
                f"{where} has category {annotation.get('category_id')!r}, which is not among the {len(labels)} listed; "
                "add the category or correct the annotation"
            )
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise UserError(f"{where} has bbox {box!r}; it must be [x, y, width, height] in pixels")
        x, y, width, height = box = [_number(value, f"{where} bbox") for value in box]
        if width < 0 or height < 0:
            raise UserError(f"{where} has bbox {box} with a negative size; it must be [x, y, width, height]")
        beyond += x + width > 1.05 * images[image][3] + 1 or y + height > 1.05 * images[image][2] + 1
        image_index.append(image)
        objects["boxes"].append(box)
        objects["labels"].append(label)
        objects["area"].append(_number(annotation.get("area", width * height), f"{where} area"))
        objects["iscrowd"].append(bool(annotation.get("iscrowd", 0)))
        objects["difficult"].append(False)
        objects["annotation_ids"].append(number)
        if outlines:
            objects["outlines"].append(run_lengths(file, annotation, images[image][2:]))
    if beyond > 0.2 * len(image_index) and beyond >= 10:
        raise UserError(
            f"{file}: {beyond} of {len(image_index)} boxes end outside their image, as if bbox held two corners; COCO "
            "boxes are [x, y, width, height]: convert them"
        )
    return DetectionAnnotations.from_lists(
        images=images,
        image_index=image_index,
        objects=objects,
        class_names=names,
        category_ids=[category["id"] for category in ordered],
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such annotation file; check the path or see the data configuration") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file}: is no valid JSON ({error}); is the file complete?") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not a COCO dictionary; is it a results file?")
    return content


def _key(identity: Any) -> str:
    """The number 7 and the string "7" are one id."""
    return str(identity)


def _sortable(identity: Any) -> tuple[int, Any]:
    text = str(identity)
    return (0, int(text)) if text.lstrip("-").isdigit() else (1, text)


def _by_id(file: Path, kind: str, entries: list[Any]) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise UserError(f"{file}: {kind} number {number} has no id (a number or a string); add one")
        if _key(entry["id"]) in result:
            raise UserError(f"{file}: the {kind} id {entry['id']!r} stands twice; ids must be unique")
        result[_key(entry["id"])] = entry
    return result


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where} holds {value!r}, which is no finite number; correct it")
    return value


def _check_files(file: Path, folder: Path, images: list[tuple[str, Any, int, int]]) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder (for {file}); check the path")
    present: dict[Path, set[str]] = {}  # one listing per folder is quicker than a question per file
    missing = []
    for path, *_ in images:
        path = Path(path)
        if path.parent not in present:
            present[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name not in present[path.parent]:
            missing.append(path)
    if missing:
        raise UserError(
            f"{missing[0]}: {len(missing)} of the {len(images)} images of {file} are missing, this one first"
        )
