"""Plain text as documents: any UTF-8 file, or a built-in text by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gossamer.core.errors import DataError

SEPARATOR = "<|endoftext|>"
"""Where one document ends and the next begins, as TinyStories and many training sets mark it."""


@dataclass(frozen=True)
class Document:
    """A text that no window crosses the end of. `where` names its source."""

    text: str
    where: str


def built_in_texts() -> tuple[str, ...]:
    """The names of the texts that ship with Gossamer: `heldout` (to report on), `validation` (to choose by)."""
    folder = resources.files("gossamer.data") / "texts"
    return tuple(sorted(item.name[:-4] for item in folder.iterdir() if item.name.endswith(".txt")))


def read_text(data: str, *, split: str | None = None) -> tuple[list[Document], dict[str, Any]]:
    """The documents of a UTF-8 text file or built-in text, and their provenance.

    A file that contains `SEPARATOR` is cut there. The provenance has `data`, `sha256` (of the file's bytes), `n`
    (documents) and `split` (always None: a text has none). Raises `DataError` if the file is missing, not UTF-8,
    or empty, or if a split is asked for.
    """
    if split is not None:
        raise DataError(f"text {data} has no split {split!r}: leave the split out, or give another file")
    content = _bytes(data)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{data} line {line}: byte {error.start} is not UTF-8; save the text as UTF-8") from error
    parts = [part.strip("\r\n") if SEPARATOR in text else part for part in text.split(SEPARATOR)]
    documents = [Document(part, f"{data} document {i}") for i, part in enumerate(parts) if part.strip()]
    if not documents:
        raise DataError(f"{data} is empty: a text file with at least a few hundred words is needed")
    provenance = {"data": data, "sha256": hashlib.sha256(content).hexdigest(), "n": len(documents), "split": None}
    return documents, provenance


def _bytes(data: str) -> bytes:
    if data in built_in_texts():
        return (resources.files("gossamer.data") / "texts" / f"{data}.txt").read_bytes()
    path = Path(data)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        names = ", ".join(built_in_texts())
        raise DataError(f"text {data} {what}: give a UTF-8 text file or the name of a built-in text ({names})")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"text {data} cannot be read ({error.strerror}): give a readable UTF-8 text file") from error
