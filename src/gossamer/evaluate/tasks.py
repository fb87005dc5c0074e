"""Opening a task by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from gossamer.core.errors import DataError
from gossamer.evaluate.task import Task

TASKS = {
    "text": "gossamer.evaluate.text:open_text",
    "vqa": "gossamer.evaluate.vqa:open_vqa",
    "detection": "gossamer.evaluate.detection:open_detection",
    "classification": "gossamer.evaluate.classification:open_classification",
}
"""Task names and the functions that open them."""


def open_task(
    name: str, data: str, opened: Any, *, split: str | None = None, limit: int | None = None, **settings: Any
) -> Task:
    """The task `name` on `data` (a path or a built-in set) for an opened model.

    `limit` takes the first examples only; `settings` are the task's own (see `open_text`, `open_vqa`,
    `open_detection`, `open_classification`), those that are None keep their defaults. Raises `DataError` for an
    unknown task or setting, unreadable data, or a model that cannot do the task.
    """
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} examples is not possible: give 1 or more")
    module, function = TASKS[name].split(":")
    opener: Callable[..., Task] = getattr(import_module(module), function)
    common = ("data", "opened", "split", "limit")
    known = [key for key in inspect.signature(opener).parameters if key not in common]
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in known:
            raise DataError(f"task {name!r} has no setting {key!r}: it takes {', '.join(known)}")
    return opener(data, opened, split=split, limit=limit, **given)
