"""The smaller jobs: replay a plan, compare two models, take a checkpoint out of a run."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.compress.apply import apply_steps
from gossamer.compress.chain import assign
from gossamer.compress.presets import preset_steps
from gossamer.core.errors import OutputError, SettingError
from gossamer.core.files import refuse_foreign, writing_directory
from gossamer.core.outcome import Measure
from gossamer.core.plan import Calibration, ModelBinding, Plan, load_plan
from gossamer.core.progress import SILENT, Progress
from gossamer.core.runfolder import checkpoint_of
from gossamer.data.batch import Batch
from gossamer.engine.forward import named_device
from gossamer.evaluate.job import chosen_task, named_task
from gossamer.evaluate.running import RUNTIME, measure_running
from gossamer.evaluate.splits import sources
from gossamer.evaluate.tasks import open_task
from gossamer.models.accounting import account
from gossamer.models.memory import IN_MEMORY, Scratch
from gossamer.models.open import Opened, open_model
from gossamer.operate.planned import check_operation
from gossamer.search.finish import calibration_batches, finish
from gossamer.search.parts import BUILT_IN, SPARE

Json = dict[str, Any]

PRESET_SAMPLES = 128
"""Calibration examples of a preset, or as many as the data holds."""


def apply_job(
    plan: str,
    model: str,
    out: Path,
    progress: Progress = SILENT,
    on: str = "cpu",
    task: str | None = None,
    data: str | None = None,
) -> Json:
    """Carries out a plan file, or a preset such as `gptq-w4g64`, on `model` and writes the checkpoint to `out`.

    It computes on the device `on`, `cpu` or `cuda`. A preset is calibrated on `data` of `task`, by default the model's
    own; a plan names its data itself. Returns `checkpoint`, `plan`, `measured`, `parity` (None where nothing names data
    on which outputs could be compared) and `notes`. Raises `PlanError` for a plan that is malformed or made for another
    model, `DataError` for a preset without data, `SettingError` for an operation that is not known, and for data given
    to a plan.
    """
    refuse_foreign(out, "config.json")
    device = named_device(on)
    is_file = Path(plan).suffix in (".yaml", ".yml") or Path(plan).exists()
    loaded = load_plan(Path(plan)) if is_file else None
    if loaded is not None and (task or data):
        raise SettingError(f"--task and --data are a preset's: {plan} is a plan, which names its calibration itself")
    opened = open_model(model, memory=Scratch(out) if device.type == "cpu" else IN_MEMORY)
    named = _named(opened, task, data)
    if loaded is None:
        loaded = _preset_plan(plan, opened, named)
    check_operation(loaded.operation)
    loaded.check_model(opened.hierarchy.family, opened.fingerprint)
    batches = calibration_batches(loaded.calibration, opened)
    probe = _probe(opened, batches, named)
    dense = account(opened, {}).weight_bytes
    opened.model.to(device)
    applied = apply_steps(opened.model, opened.hierarchy, loaded.compression, batches, progress, opened.memory)
    opened.model.cpu()
    done = finish(opened, applied, out, probe)
    loaded.save(out / "plan.yaml")
    size = done.stored.weight_bytes
    return {
        "checkpoint": str(out),
        "plan": str(out / "plan.yaml"),
        "measured": {
            "weight_bytes": Measure.exact(size).model_dump(),
            "saving_percent": Measure.exact(100 * (1 - size / dense)).model_dump(),
        },
        "parity": done.parity,
        "notes": [*applied.notes, *done.stored.notes],
    }


def _named(opened: Opened, task: str | None, data: str | None) -> tuple[str, str] | None:
    """Task and data as given, or else the model's own; None where nothing is given and it names none."""
    nothing = task is None and data is None and not (opened.defaults.get("task") and opened.defaults.get("data"))
    return None if nothing else named_task(opened, task, data)


def _preset_plan(name: str, opened: Opened, named: tuple[str, str] | None) -> Plan:
    steps = preset_steps(name, opened.hierarchy)
    needed = assign(opened.hierarchy, steps).needs_data
    calibration = calibration_on(opened, *(named or named_task(opened))) if needed else None
    binding = ModelBinding(family=opened.hierarchy.family, fingerprint=opened.fingerprint)
    return Plan(model=binding, calibration=calibration, compression=steps)


def calibration_on(opened: Opened, task: str, data: str) -> Calibration:
    """As a preset is calibrated: on the first `PRESET_SAMPLES` examples, or as many as there are."""
    split = BUILT_IN.get(data, (None, None))[0]
    settings: Json = {} if split is None else {"split": split, "limit": PRESET_SAMPLES * SPARE.get(task, 1)}
    pool = open_task(task, data, opened, **settings)
    return Calibration(
        task=task,
        data=data,
        sha256=str(pool.protocol["sha256"]),
        pool=len(set(sources(pool))),
        samples=min(PRESET_SAMPLES, len(pool)),
        settings=settings,
    )


def _probe(opened: Opened, batches: list[Batch], named: tuple[str, str] | None) -> Mapping[str, Any] | None:
    """Inputs on which outputs are compared: of calibration, or of the task and data that are `named`."""
    if not batches and named is not None:
        batches = calibration_batches(calibration_on(opened, *named), opened)
    return batches[0].inputs if batches else None


@dataclass(frozen=True)
class _Side:
    source: str
    weight_bytes: int
    results: Any


def compare_job(
    a: str,
    b: str,
    task: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    meters: bool = False,
    progress: Progress = SILENT,
) -> Json:
    """Measures two models on the same examples in one run. `difference` is b minus a, paired over examples.

    Each of `a` and `b` is a model or a run folder (its checkpoint). The task and data default to what `a` declares.
    With `meters` both sides also have the figures of `measure_running`, `ratio` holds b's times by a's, and `notes` say
    what they are of.
    """
    opened = open_model(checkpoint_of(a))
    examples = chosen_task(opened, task, data, limit, seed=0)
    first = _Side(a, opened.stored_bytes, examples.results(opened.model, progress))
    other = open_model(checkpoint_of(b))
    second = _Side(b, other.stored_bytes, examples.results(other.model, progress))
    figures = [examples.summarise(side.results) for side in (first, second)]
    extra: Json = {}
    if meters:
        inputs = next(iter(examples.batches(1))).inputs
        running = measure_running((opened.model, other.model), inputs, progress, (opened.file, other.file))
        figures = [mine | more for mine, more in zip(figures, running.figures, strict=True)]
        ratio = {key: value.model_dump() for key, value in running.ratios.items()}
        extra = {"ratio": ratio, "notes": [f"{RUNTIME}.", *running.notes]}
    sides = [
        {
            "model": side.source,
            "weight_bytes": side.weight_bytes,
            "measured": {key: value.model_dump() for key, value in mine.items()},
        }
        for side, mine in zip((first, second), figures, strict=True)
    ]
    return {
        "a": sides[0],
        "b": sides[1],
        "difference": {examples.metric: examples.difference(first.results, second.results).model_dump()},
        "weight_bytes_ratio": second.weight_bytes / first.weight_bytes,
        "protocol": examples.protocol,
        **extra,
    }


def read_result(run: Path) -> Json:
    """The result of a finished run. Raises `OutputError` if the folder holds none."""
    try:
        return json.loads((run / "result.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise OutputError(
            f"{run} holds no finished run: give the --out folder of an optimize job that has ended"
        ) from None


def export_job(run: Path, out: Path) -> Json:
    """Copies a finished run's checkpoint, with its plan, to `out`."""
    refuse_foreign(out, "config.json")
    result = read_result(run)
    with writing_directory(out) as folder:
        shutil.copytree(run / result["checkpoint"], folder, dirs_exist_ok=True)
        shutil.copy(run / result["plan"], folder / "plan.yaml")
    return {"checkpoint": str(out), "plan": str(out / "plan.yaml"), "format": "compressed-tensors"}
