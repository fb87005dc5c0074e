"""From what a user asks for to a way to leave early."""

from dataclasses import dataclass
from typing import Any

from gossamer.core.errors import BudgetError, SettingError
from gossamer.core.progress import SILENT, Progress
from gossamer.core.units import parse_percent
from gossamer.evaluate.job import named_task
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.open import open_model
from gossamer.operate.early_exit.calibrate import Calibration, calibrate, fewest
from gossamer.operate.early_exit.decode import EarlyExit

CONTEXT = 64
"""Tokens of a window of text: short ones make many examples."""
SPARE, MOST = 2, 8192
"""Times the fewest examples are read, as with no more a single token that differs would be too many; and no more."""
TEXT = "validation"
"""The built-in text that is there to choose by; the other one is to report on."""
SPLITS = {"scenes": "val"}
"""The split to choose by, of built-in sets that have one."""


@dataclass(frozen=True)
class ExitWish:
    """`how` is `N:THRESHOLD` (see `EarlyExit`), or a share such as `1%`: at most so many of the tokens may differ from
    the whole model's, as is to be shown on `data`, by default `TEXT`, or of a model of another task its own data."""

    how: str
    data: str | None = None

    def fitted(self, ref: str, progress: Progress = SILENT) -> tuple[EarlyExit | None, Calibration | None]:
        """The way to leave the model `ref`, None where none is safe and pays; and how it was found, if it was not said.

        Calibration opens the model in torch, whatever engine is to run it. Raises `SettingError` for what cannot be
        meant, and what `open_model` and `calibrate` do.
        """
        blocks, colon, threshold = self.how.partition(":")
        if colon:
            if self.data is not None:
                raise SettingError(f"--data is to calibrate by: {self.how!r} needs none, leave it out")
            return EarlyExit(_number(blocks, int, self.how), _number(threshold, float, self.how)), None
        try:
            risk = parse_percent(self.how) / 100
        except BudgetError as error:
            raise SettingError(f"early exit {self.how!r} is not possible: give {_ACCEPTED}") from error
        if not 0 < risk < 1:
            raise SettingError(f"early exit {self.how!r} is not possible: give a share above 0% and below 100%")
        opened = open_model(ref)
        task = _task(opened, self.data, min(MOST, SPARE * fewest(risk)))
        found = calibrate(opened.model, task, risk, progress=progress)
        return (found.way if found.pays else None), found


_ACCEPTED = "a share such as 1%, or N:THRESHOLD such as 8:0.9"


def _task(opened: Any, data: str | None, examples: int) -> Task:
    name = opened.defaults.get("task", "text")
    if name == "text":
        return open_task(name, data or TEXT, opened, limit=examples, context=CONTEXT)
    _, source = named_task(opened, name, data)
    return open_task(name, source, opened, limit=examples, split=SPLITS.get(source))


def _number(text: str, kind: Any, whole: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise SettingError(f"early exit {whole!r} is not possible: give {_ACCEPTED}") from None
