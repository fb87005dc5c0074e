"""The main job: open → sensitivity → allocate → refine → guard → export → verify.

Every step is keyed by its inputs in the run folder, so a job that was interrupted goes on where it stopped and ends
with the same bytes.
"""

import time
from typing import Any

from gossamer.core.budget import Budget
from gossamer.core.errors import BudgetError
from gossamer.core.files import write_json
from gossamer.core.progress import SILENT, Progress
from gossamer.core.runfolder import RunFolder
from gossamer.core.units import format_bytes
from gossamer.models.checkpoint import reload
from gossamer.models.open import Opened, open_model
from gossamer.search.allocate import smallest
from gossamer.search.bank import fill_bank
from gossamer.search.finish import finish
from gossamer.search.front import options_of
from gossamer.search.job import TECHNIQUE, Job
from gossamer.search.outcome import Found, result_of
from gossamer.search.parts import open_parts
from gossamer.search.request import OptimizeRequest, sizes_for
from gossamer.search.samples import continuations
from gossamer.search.sensitivity import measure_sensitivity
from gossamer.search.steps import allocated, byte_limit, guarded, pareto
from gossamer.search.units import Granularity, Unit, assignment_of, fixed_bytes, units_of

BLOCK_PARAMETERS = 50_000_000
"""Above this many parameters `auto` granularity searches block by block."""


def optimize(request: OptimizeRequest, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs the job and returns the result (see `gossamer.report.schema.Result`), which is also in `out/result.json`.

    With `dry_run` nothing is written: the returned object tells what would be done. Raises `GossamerError` subclasses
    for what the user can mend.
    """
    started = time.monotonic()
    opened = open_model(request.model)
    budget = request.budget(2 * opened.hierarchy.parameters)
    units = units_of(opened.hierarchy, _granularity(request, opened))
    fixed = fixed_bytes(opened.hierarchy, units)
    _check_feasible(budget, units, fixed)
    sizes = sizes_for(request.task or str(opened.defaults.get("task")), request.effort)
    parts = open_parts(request, opened, sizes)
    if request.dry_run:
        return {
            "dry_run": True,
            "budget": budget.model_dump(exclude_none=True),
            "estimated": {
                "smallest_weight_bytes": fixed + smallest(options_of(units, [[0.0] * len(u.choices) for u in units])),
                "dense_weight_bytes": 2 * opened.hierarchy.parameters,
                "units": len(units),
                "evaluations": sum(len(unit.choices) - 1 for unit in units),
            },
            "data": parts.counts,
        }
    job = Job(request, opened, RunFolder(request.out), parts, sizes, budget, units, fixed, progress)
    found = search(job)
    result = result_of(job, found, time.monotonic() - started)
    write_json(request.out / "result.json", result)
    return result


def search(job: Job) -> Found:
    """All steps from the bank to the verified checkpoint. Afterwards the opened model holds the result's weights."""
    job.progress.say(f"{job.request.model}: {len(job.units)} units, {format_bytes(job.dense_bytes)} at 16 bits")
    model, hierarchy = job.opened.model, job.opened.hierarchy
    bank = fill_bank(
        job.folder, job.key, model, hierarchy, job.units, TECHNIQUE, job.calibration, job.walk, job.progress
    )
    sensitivity = measure_sensitivity(
        job.folder, job.key, model, hierarchy, job.units, job.scorer("measure"), job.walk, bank, job.progress
    )
    points, uniforms = pareto(job, bank, sensitivity)
    limit = byte_limit(job, bank, points)
    refined = allocated(job, bank, sensitivity, limit)
    verdict = guarded(job, assignment_of(job.units, refined.chosen), uniforms, limit)
    out = job.request.out
    job.plan(job.steps(verdict.winner.assignment), job.budget).save(out / "plan.yaml")
    for point in points:
        budget = Budget(weight_bytes=point.weight_bytes)
        job.plan(job.steps(point.assignment), budget).save(out / "pareto" / f"{point.weight_bytes}.yaml")
    selected = job.score(verdict.winner.applied.tensors, "select")
    test, tokenizer = job.parts.test, job.opened.tokenizer
    before, texts_before = test.results(model, job.progress), continuations(test, tokenizer, model)
    probe = next(iter(test.batches(4))).inputs
    finished = finish(job.opened, verdict.winner.applied.tensors, out / "checkpoint", probe)
    reloaded = reload(finished.stored.directory)
    after, texts_after = test.results(reloaded, job.progress), continuations(test, tokenizer, reloaded)
    return Found(
        sensitivity,
        points,
        uniforms,
        refined,
        verdict,
        selected,
        finished,
        before,
        after,
        (texts_before, texts_after),
        limit,
    )


def _granularity(request: OptimizeRequest, opened: Opened) -> Granularity:
    if request.granularity != "auto":
        return request.granularity
    return "block" if opened.hierarchy.parameters > BLOCK_PARAMETERS else "layer"


def _check_feasible(budget: Budget, units: tuple[Unit, ...], fixed: int) -> None:
    """Raises `BudgetError` if not even the smallest choices fit the bytes."""
    least = fixed + sum(min(choice.bytes for choice in unit.choices) for unit in units)
    if budget.weight_bytes is not None and budget.weight_bytes < least:
        raise BudgetError(
            f"the weight budget of {format_bytes(budget.weight_bytes)} cannot be met: {format_bytes(fixed)} must stay "
            f"at 16 bits and the smallest choices for the rest bring the total to {format_bytes(least)}; "
            f"the nearest feasible is --memory {least}"
        )
