"""Labelled pictures: a folder for each class, JSON lines, or arrays in an npz file."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.errors import DataError
from gossamer.data.images import ImageRef, image_array, image_file

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class LabelledImage:
    """A picture and the number of its class."""

    image: ImageRef
    label: int


Labelled = tuple[list[LabelledImage], tuple[str, ...], dict[str, Any]]


def read_classification(data: str, *, split: str | None = None, limit: int | None = None) -> Labelled:
    """The pictures of `data`, the class names (sorted; a number where the data have only numbers), the provenance.

    `data` is one of
    - a folder with a folder of pictures for each class, or with such folders for each split;
    - a JSON-lines file with `{"image": path relative to the file, "label": name or number}`;
    - an npz file with `SPLIT_images` and `SPLIT_labels` (MedMNIST), or `x` and `y`: uint8, N x H x W [x 3].

    Folders are read in turns, one picture of each class after the other, files and arrays in their order, so that a
    `limit` keeps all classes of a folder. Splits: test if there is one and none is named. The provenance has `data`,
    `sha256` (of all files read), `n` and `split`. Raises `DataError` naming file and line at fault.
    """
    path = Path(data)
    if path.is_dir():
        examples, classes, digest, split = _folder(path, split)
    elif path.suffix == ".npz" and path.is_file():
        examples, classes, digest, split = _arrays(path, split)
    elif path.is_file():
        if split is not None:
            raise DataError(f"{path} is one file and has no split {split!r}: leave the split out")
        examples, classes, digest = _lines(path)
    else:
        raise DataError(f"pictures {path} do not exist: give a folder of class folders, a JSON-lines or an npz file")
    examples = examples[:limit]
    return examples, classes, {"data": data, "sha256": digest, "n": len(examples), "split": split}


def _folder(path: Path, split: str | None) -> tuple[list[LabelledImage], tuple[str, ...], str, str | None]:
    inner = _folders(path)
    splits = [f.name for f in inner if _folders(f) and not _pictures(f)]
    if split is not None and split not in splits:
        raise DataError(f"folder {path} has no split {split!r}: it has {', '.join(splits) or 'none'}")
    if split is None and splits:
        split = "test" if "test" in splits else splits[0] if len(splits) == 1 else None
        if split is None:
            raise DataError(f"folder {path} has the splits {', '.join(splits)}: name one of them")
    root = path / split if split else path
    folders = [(f, files) for f in _folders(root) if (files := _pictures(f))]
    if not folders:
        raise DataError(f"folder {root} is empty: a folder of pictures for each class is needed")
    total = hashlib.sha256()
    columns = []
    for number, (folder, files) in enumerate(folders):
        columns.append([LabelledImage(image_file(file, f"class {folder.name}"), number) for file in files])
        for file in files:
            total.update(f"{folder.name}/{file.name}".encode())
            total.update(file.read_bytes())
    rounds = range(max(len(column) for column in columns))
    examples = [column[i] for i in rounds for column in columns if i < len(column)]
    return examples, tuple(folder.name for folder, _ in folders), total.hexdigest(), split


def _folders(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))


def _pictures(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)


def _lines(path: Path) -> tuple[list[LabelledImage], tuple[str, ...], str]:
    content = path.read_bytes()
    total = hashlib.sha256(content)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: not UTF-8; JSON lines in UTF-8 are expected") from error
    rows: list[tuple[ImageRef, Any]] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error.msg}); one object a line is due") from error
        if not isinstance(row, dict) or row.get("image") is None or row.get("label") is None:
            raise DataError(f"{where}: an object with image and label is expected")
        file = path.parent / str(row["image"])
        rows.append((image_file(file, where), row["label"]))
        total.update(file.read_bytes())
    if not rows:
        raise DataError(f"{path} is empty: at least one picture with its label is needed")
    whole = all(isinstance(label, int) for _, label in rows)
    if whole:  # numbers are class numbers, those that do not occur included
        classes = tuple(str(i) for i in range(max(label for _, label in rows) + 1))
    else:
        classes = tuple(sorted({str(label) for _, label in rows}))
    numbers = {name: i for i, name in enumerate(classes)}
    return [LabelledImage(image, numbers[str(label)]) for image, label in rows], classes, total.hexdigest()


def _arrays(path: Path, split: str | None) -> tuple[list[LabelledImage], tuple[str, ...], str, str | None]:
    import numpy as np

    try:
        archive = np.load(path, allow_pickle=False)
        names = set(archive.files)
        pairs = {name[:-7]: (name, f"{name[:-7]}_labels") for name in sorted(names) if name.endswith("_images")}
        if {"x", "y"} <= names and not pairs:
            pairs = {"": ("x", "y")}
        key = split if split is not None else next((k for k in ("", "test") if k in pairs), None)
        if key not in pairs or pairs[key][1] not in names:
            known = ", ".join(k for k in pairs if k) or "none"
            raise DataError(
                f"{path} has no split {split or 'test'!r} (it has {known}): SPLIT_images and SPLIT_labels are due"
            )
        images, labels = (archive[name] for name in pairs[key])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not a readable npz file ({error}): arrays without pickled objects are needed"
        ) from error
    labels = labels.reshape(-1)
    right = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3))
    if not right or len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {pairs[key][0]} ({images.dtype} {list(images.shape)}) with {len(labels)} {pairs[key][1]} "
            "cannot be read: uint8 N x H x W [x 3] with N whole numbers is expected"
        )
    if not len(images) or labels.min() < 0:
        raise DataError(f"{path}: {pairs[key][0]} is empty or has negative labels: at least one picture is needed")
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    examples = [
        LabelledImage(image_array(image, f"{path}/{key}/{i}"), int(label))
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return examples, tuple(str(i) for i in range(int(labels.max()) + 1)), digest, key or None
