"""Visual questions with answers: JSON lines, the VQA-RAD and easy-VQA layouts, and the built-in scenes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gossamer.core.errors import DataError
from gossamer.data.images import ImageRef, image_file, scene_image

SCENES_DEFAULT = 2000
"""Questions taken from the built-in scenes where no limit is given."""


@dataclass(frozen=True)
class VqaExample:
    """One question. `kind` is the set's own name for the sort of question; `closed`: the answer is yes or no (or,
    in VQA-RAD, whatever its authors call closed)."""

    image: ImageRef
    question: str
    answer: str
    closed: bool
    kind: str | None = None


def read_vqa(
    data: str, *, split: str | None = None, limit: int | None = None
) -> tuple[list[VqaExample], dict[str, Any]]:
    """The examples of `data` in file order, the first `limit` of them, and their provenance.

    `data` is one of
    - `scenes`: the generator's questions (splits train, val, test; test if none is named);
    - a JSON-lines file with `{"image": path relative to the file, "question": …, "answer": …}` and optionally `kind`;
    - VQA-RAD: a JSON list with `image_name`, `question`, `answer`, images in `images/` beside it, or the folder that
      holds `SPLIT.json`;
    - easy-VQA: the folder with `train/` and `test/`, or one of these (`questions.json` and `images/`).

    The provenance has `data`, `sha256` (of the questions file and all images that it names; for scenes of the
    generator's first scenes of the split), `n` and `split`. Raises `DataError` naming file and line at fault.
    """
    if data == "scenes":
        return _scenes(split or "test", SCENES_DEFAULT if limit is None else limit)
    path, split = _locate(Path(data), split)
    content = _content(path)
    rows = list(_rows(path, content))
    seen: dict[Path, ImageRef] = {}
    examples = [_example(row, where, path, seen) for row, where in rows]
    if not examples:
        raise DataError(f"{path} is empty: at least one question with image, question and answer is needed")
    sha256 = _digest(content, examples)
    examples = examples[:limit]
    return examples, {"data": data, "sha256": sha256, "n": len(examples), "split": split}


def _locate(path: Path, split: str | None) -> tuple[Path, str | None]:
    """The questions file that a path and a split mean."""
    if path.is_file():
        if split is not None:
            raise DataError(f"{path} is one file and has no split {split!r}: leave the split out, or give its folder")
        return path, None
    if not path.is_dir():
        raise DataError(f"questions {path} do not exist: give a JSON-lines file, a VQA-RAD folder, or scenes")
    if (path / "questions.json").is_file() and split is None:
        return path / "questions.json", None
    choices = {f.stem: f for suffix in ("json", "jsonl") for f in sorted(path.glob(f"*.{suffix}"))}
    choices |= {f.parent.name: f for f in sorted(path.glob("*/questions.json"))}
    if not choices:
        raise DataError(f"folder {path} holds no questions: SPLIT.json[l] or SPLIT/questions.json is expected")
    order = ("test", "val", "validation") if split is None else (split,)
    chosen = next((name for name in order if name in choices), next(iter(choices)) if len(choices) == 1 else None)
    if chosen is None or (split is not None and chosen != split):
        raise DataError(f"folder {path} has no split {split or 'test'!r}: it has {', '.join(sorted(choices))}")
    return choices[chosen], chosen


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"questions {path} cannot be read ({error.strerror}): give a readable file") from error


def _rows(path: Path, content: bytes) -> Iterator[tuple[Any, str]]:
    """Each entry with the words that name its place."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: not UTF-8; JSON lines or a JSON list in UTF-8 is expected") from error
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {error.lineno}: not valid JSON ({error.msg}); fix the list") from error
        yield from ((entry, f"{path} entry {i}") for i, entry in enumerate(entries, 1))
        return
    for number, content_line in enumerate(text.split("\n"), 1):
        if not content_line.strip():
            continue
        try:
            yield json.loads(content_line), f"{path} line {number}"
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number}: not valid JSON ({error.msg}); one object a line is due") from error


def _example(row: Any, where: str, path: Path, seen: dict[Path, ImageRef]) -> VqaExample:
    if isinstance(row, list) and len(row) == 3:  # easy-VQA: question, answer, image number
        question, answer, number = row
        row = {"question": question, "answer": answer, "image": f"images/{number}.png"}
    if not isinstance(row, dict):
        raise DataError(f"{where}: an object with image, question and answer is expected")
    name = row.get("image")
    if name is None and row.get("image_name"):
        name = f"images/{row['image_name']}"
    said = {"image": name, "question": row.get("question"), "answer": row.get("answer")}
    missing = [key for key, value in said.items() if value is None or not str(value).strip()]
    if missing:
        raise DataError(f"{where}: {missing[0]!r} is missing or empty; each question needs image, question and answer")
    answer = str(row["answer"]).strip()
    rad = str(row.get("answer_type", "")).strip().upper()
    closed = rad == "CLOSED" if rad else answer.lower() in ("yes", "no")
    kind = row.get("kind") or row.get("question_type")
    kind = str(kind).strip().upper() if "question_type" in row and kind else kind
    file = path.parent / str(name)
    if file not in seen:  # one check for each file, however many questions name it
        seen[file] = image_file(file, where)
    return VqaExample(seen[file], str(row["question"]).strip(), answer, closed, kind)


def _digest(content: bytes, examples: Iterable[VqaExample]) -> str:
    total = hashlib.sha256(content)
    for key in dict.fromkeys(example.image.key for example in examples):
        with Path(key).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _scenes(split: str, limit: int) -> tuple[list[VqaExample], dict[str, Any]]:
    from gossamer.data.scenes import SPLITS, questions, scene

    if split not in SPLITS:
        raise DataError(f"scenes have no split {split!r}: choose one of {', '.join(SPLITS)}")
    examples: list[VqaExample] = []
    index = 0
    while len(examples) < limit:
        image = scene_image(split, index)
        examples += [VqaExample(image, q.text, q.answer, q.closed, q.kind) for q in questions(scene(split, index))]
        index += 1
    examples = examples[:limit]
    return examples, {"data": "scenes", "sha256": scenes_digest(split), "n": len(examples), "split": split}


@lru_cache
def scenes_digest(split: str, count: int = 8) -> str:
    """SHA-256 of the first scenes of a split: pixels, boxes and questions. It changes when the generator does."""
    from gossamer.data.scenes import questions, scene

    total = hashlib.sha256(split.encode())
    for index in range(count):
        one = scene(split, index)
        total.update(one.image.tobytes())
        total.update(repr((one.objects, [(q.text, q.answer) for q in questions(one)])).encode())
    return total.hexdigest()
