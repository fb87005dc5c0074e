"""The `evaluate` job: one model, one task, figures with intervals and the protocol behind them."""

from typing import Any

from gossamer.core.errors import DataError
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.evaluate.meters import process_peak_bytes
from gossamer.evaluate.running import RUNTIME, measure_running
from gossamer.evaluate.splits import draw
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import TASKS, open_task
from gossamer.models.open import Opened, open_model


def evaluate_model(
    ref: str,
    task: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    meters: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measures the model `ref`. Task and data default to what the model suggests; of more examples than `limit`, so
    many are drawn by `seed`. With `meters` the figures of `measure_running` and `peak_memory_bytes`, the highest
    resident memory of this process, are measured too, and `notes` say what they are of. Raises `ModelError` or
    `DataError` where either side cannot be used.
    """
    opened = open_model(ref)
    chosen = chosen_task(opened, task, data, limit, seed)
    figures = chosen.measure(opened.model, progress)
    figures["weight_bytes"] = Measure.exact(opened.stored_bytes)
    extra: dict[str, Any] = {}
    if meters:
        peak = Measure.exact(process_peak_bytes())  # before the native engine holds a second copy of the weights
        running = measure_running((opened.model,), next(iter(chosen.batches(1))).inputs, progress, (opened.file,))
        figures |= running.figures[0] | {"peak_memory_bytes": peak}
        extra["notes"] = [f"{RUNTIME}.", *running.notes]
    return {
        "model": {"name": ref, "family": opened.hierarchy.family, "fingerprint": opened.fingerprint},
        "task": chosen.name,
        "metric": chosen.metric,
        "measured": {key: value.model_dump() for key, value in figures.items()},
        "protocol": {**chosen.protocol, "seed": seed},
        **extra,
    }


def chosen_task(opened: Opened, task: str | None, data: str | None, limit: int | None, seed: int) -> Task:
    """The task asked for, or the model's own. Raises `DataError` if nothing says which task or which data."""
    name, source = named_task(opened, task, data)
    whole = open_task(name, source, opened)
    if limit is None or limit == len(whole):
        return whole
    if limit > len(whole):
        return open_task(name, source, opened, limit=limit)
    return whole.subset(draw(range(len(whole)), {"sample": limit}, seed)["sample"])


def named_task(opened: Opened, task: str | None = None, data: str | None = None) -> tuple[str, str]:
    """The names of task and data: as given, else what the model suggests. Raises `DataError` where neither does."""
    defaults = opened.defaults
    name = task or defaults.get("task")
    if name is None:
        raise DataError(f"model {opened.source} suggests no task: give --task with one of {', '.join(TASKS)}")
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    source = data or (defaults.get("data") if name == defaults.get("task") else None)
    if source is None:
        raise DataError(f"task {name!r} needs data: give --data with a path or the name of a built-in set")
    return name, source
