"""Pictures with boxes: COCO JSON (instances or panoptic) with its images, and the built-in scenes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.errors import DataError
from gossamer.data.images import ImageRef, image_file, scene_image
from gossamer.data.vqa import scenes_digest

SCENES_DEFAULT = 300
"""Scenes taken where no limit is given."""


@dataclass(frozen=True)
class DetectionExample:
    """One picture of `width` x `height` pixels and the boxes on it.

    `boxes` are (x0, y0, x1, y1) in pixels, `labels` class numbers from 0, `crowd` tells which boxes stand for many
    objects at once (COCO ignores them), `areas` are in square pixels.
    """

    image: ImageRef
    width: int
    height: int
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]
    crowd: tuple[bool, ...]
    areas: tuple[float, ...]


def read_detection(
    data: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    images: str | None = None,
    skip_missing: bool = False,
    size: int = 64,
) -> tuple[list[DetectionExample], tuple[str, ...], dict[str, Any]]:
    """The pictures of `data` in file order, the class names, and the provenance.

    `data` is `scenes` (splits train, val, test; test if none is named; rendered at `size` x `size` pixels), a COCO
    JSON file, or a folder with one such file (or one whose name contains `split`). `images` is the folder of the
    pictures (default: the JSON file's own, or `images` in or beside it). `skip_missing` leaves out pictures that are
    not there instead of refusing the set. Of panoptic files, the boxes of things are read.

    Raises `DataError` naming the file and entry at fault.
    """
    if data == "scenes":
        return _scenes(split or "test", SCENES_DEFAULT if limit is None else limit, size)
    path = _locate(Path(data), split)
    content = _read(path)
    entries, annotations, categories = _tables(path, content)
    numbers = {category: i for i, category in enumerate(categories)}
    folder = _folder(path, entries, images)
    boxes: dict[Any, list[tuple[Any, ...]]] = {}
    for place, image, annotation in annotations:
        boxes.setdefault(image, []).append(_box(annotation, place, numbers))
    total = hashlib.sha256(content)
    examples = []
    for number, entry in enumerate(entries, 1):
        where = f"{path} image {number}"
        if not isinstance(entry, dict) or "id" not in entry or "file_name" not in entry:
            raise DataError(f"{where}: id and file_name are needed")
        file = folder / str(entry["file_name"])
        if skip_missing and not file.is_file():
            continue
        examples.append(_example(entry, file, boxes.get(entry["id"], []), where))
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    if not examples:
        raise DataError(f"{path} is empty: at least one image is needed")
    examples = examples[:limit]
    provenance = {"data": data, "sha256": total.hexdigest(), "n": len(examples), "split": split}
    return examples, tuple(categories.values()), provenance


def _locate(path: Path, split: str | None) -> Path:
    if path.is_file():
        if split is not None:
            raise DataError(f"{path} is one file and has no split {split!r}: leave the split out, or give its folder")
        return path
    if not path.is_dir():
        raise DataError(f"detection data {path} do not exist: give a COCO JSON file, its folder, or scenes")
    found = sorted(file for at in (path, path / "annotations") for file in at.glob("*.json"))
    found = [file for file in found if split is None or split in file.stem]
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "no JSON file"
        raise DataError(
            f"folder {path} holds {names}: name one COCO JSON file, or a split that only one is named after"
        )
    return found[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a readable COCO JSON file") from error


def _tables(path: Path, content: bytes) -> tuple[list[Any], list[tuple[str, Any, Any]], dict[Any, str]]:
    """Images, (place, image id, annotation) triples and category id → name of a COCO file."""
    try:
        root = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not valid JSON ({error.msg}); COCO JSON is expected") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; COCO JSON is expected") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(root, dict) or not isinstance(root.get(key), list):
            raise DataError(
                f"{path} has no list {key!r}: COCO JSON with images, annotations and categories is expected"
            )
    try:
        things = [c for c in root["categories"] if c.get("isthing", 1)]
        categories = {c["id"]: str(c["name"]) for c in things}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: each category needs id and name") from error
    return root["images"], list(_annotations(path, root["annotations"], categories)), categories


def _annotations(path: Path, rows: list[Any], categories: dict[Any, str]) -> Iterator[tuple[str, Any, Any]]:
    for number, row in enumerate(rows, 1):
        where = f"{path} annotation {number}"
        if not isinstance(row, dict) or "image_id" not in row:
            raise DataError(f"{where}: image_id is missing")
        if "segments_info" in row:  # panoptic: stuff has no box worth finding
            segments = [segment for segment in row["segments_info"] if segment.get("category_id") in categories]
            yield from ((where, row["image_id"], segment) for segment in segments)
        else:
            yield where, row["image_id"], row


def _box(row: dict[str, Any], where: str, numbers: dict[Any, int]) -> tuple[Any, ...]:
    """(box, label, crowd, area) of an annotation."""
    if row.get("category_id") not in numbers:
        raise DataError(f"{where}: category {row.get('category_id')!r} is not among the file's categories")
    box: Any = row.get("bbox")
    numeric = (
        isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    )
    if not numeric or box[2] < 0 or box[3] < 0:
        raise DataError(f"{where}: bbox must be [x, y, width, height] in pixels, not {box!r}")
    x, y, w, h = (float(v) for v in box)
    corners = (x, y, x + w, y + h)
    return corners, numbers[row["category_id"]], bool(row.get("iscrowd", 0)), float(row.get("area", w * h))


def _folder(path: Path, entries: list[Any], images: str | None) -> Path:
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"image folder {images} does not exist: give the folder that holds the pictures of {path}")
        return Path(images)
    names = [str(entry["file_name"]) for entry in entries if isinstance(entry, dict) and "file_name" in entry]
    for folder in (path.parent, path.parent / "images", path.parent.parent / "images"):
        if any((folder / name).is_file() for name in names):
            return folder
    return path.parent


def _example(entry: dict[str, Any], file: Path, boxes: list[tuple[Any, ...]], where: str) -> DetectionExample:
    image = image_file(file, where)
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        width, height = image.load().size
    columns = list(zip(*boxes, strict=True)) or [(), (), (), ()]
    return DetectionExample(image, width, height, *columns)


def _scenes(split: str, limit: int, size: int) -> tuple[list[DetectionExample], tuple[str, ...], dict[str, Any]]:
    from gossamer.data.scenes import PAIRS, QUERY, SPLITS, scene

    if split not in SPLITS:
        raise DataError(f"scenes have no split {split!r}: choose one of {', '.join(SPLITS)}")
    examples = []
    for index in range(limit):
        objects = scene(split, index, size=size).objects
        boxes = tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in (o.box for o in objects))
        labels = tuple(PAIRS.index((o.colour, o.shape)) for o in objects)
        areas = tuple((b[2] - b[0]) * (b[3] - b[1]) for b in boxes)
        examples.append(
            DetectionExample(scene_image(split, index, size), size, size, boxes, labels, (False,) * len(boxes), areas)
        )
    names = tuple(QUERY.format(colour=colour, shape=shape) for colour, shape in PAIRS)
    return examples, names, {"data": "scenes", "sha256": scenes_digest(split), "n": limit, "split": split, "size": size}
