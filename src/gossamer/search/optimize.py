"""The main job: open → sensitivity → allocate → refine → guard → export → verify.

Every step is keyed by its inputs in the run folder, so a job that was interrupted goes on where it stopped and ends
with the same bytes.
"""

import time
from contextlib import nullcontext
from typing import Any

from gossamer.core.budget import Budget
from gossamer.core.files import write_json
from gossamer.core.progress import SILENT, Progress
from gossamer.core.units import format_bytes
from gossamer.engine.forward import device_of
from gossamer.evaluate.running import measure_running
from gossamer.models.checkpoint import reload, save_compressed
from gossamer.models.packed import Scheme
from gossamer.search.alternatives import alternatives, does_it_pay
from gossamer.search.bank import fill_bank
from gossamer.search.cluster import cluster
from gossamer.search.finish import prove
from gossamer.search.job import BANK_TECHNIQUE, Job
from gossamer.search.opening import is_thrifty, open_job
from gossamer.search.outcome import Found, result_of
from gossamer.search.request import OptimizeRequest
from gossamer.search.samples import continuations
from gossamer.search.sensitivity import Sensitivity, measure_sensitivity
from gossamer.search.steps import allocated, guarded, pareto, room_of, searched
from gossamer.search.structure import changes, does_structure_pay
from gossamer.search.trials import Runner, Trials, here
from gossamer.search.units import assignment_of, describe, least_costs

ANCHORS = (Scheme(2, 64), Scheme(4, 64))
"""The choices at which the units of large models are measured."""


def optimize(request: OptimizeRequest, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs the job and returns the result (see `gossamer.report.schema.Result`), which is also in `out/result.json`.

    With `dry_run` nothing is written: the returned object tells what would be done. Raises `GossamerError` subclasses
    for what the user can mend.
    """
    started = time.monotonic()
    with nullcontext(here) if request.ray is None else cluster(request.ray) as runner:
        job = open_job(request, progress)
        if request.dry_run:
            return _foreseen(job)
        result = result_of(job, search(job, runner), time.monotonic() - started)
    write_json(request.out / "result.json", result)
    return result


def _foreseen(job: Job) -> dict[str, Any]:
    """What a dry run tells."""
    least = least_costs(job.units)
    return {
        "dry_run": True,
        "budget": job.budget.model_dump(exclude_none=True),
        "estimated": {
            "smallest_weight_bytes": job.fixed + int(least[0]),
            "dense_weight_bytes": job.dense_bytes,
            **{f"smallest_{key}": value for key, value in job.limits.estimates(least).items()},
            "units": len(job.units),
            "evaluations": sum(len(unit.choices) - 1 for unit in job.units),
        },
        "data": job.parts.counts,
    }


def profile(job: Job, runner: Runner = here) -> tuple[Trials, Sensitivity]:
    """The trials of the bank's candidates, and the sensitivity of every unit to every choice."""
    model, hierarchy = job.opened.model, job.opened.hierarchy
    bank = fill_bank(
        job.folder, job.key, model, hierarchy, job.units, BANK_TECHNIQUE, job.calibration, job.walk, job.progress
    )
    trials = Trials(job, bank, runner(job, bank))
    anchors = frozenset(describe(scheme) for scheme in ANCHORS) if is_thrifty(job.request, job.opened) else None
    return trials, measure_sensitivity(job, trials, anchors)


def search(job: Job, runner: Runner = here) -> Found:
    """All steps from the bank to the verified checkpoint. Afterwards the opened model holds the result's weights."""
    job.progress.say(f"{job.request.model}: {len(job.units)} units, {format_bytes(job.dense_bytes)} at 16 bits")
    trials, sensitivity = profile(job, runner)
    tried, reshaped = alternatives(job), changes(job)
    points, uniforms = pareto(job, trials, sensitivity)
    room = room_of(job, trials, points)
    refined = allocated(job, trials, sensitivity, room)
    chosen, comparison = searched(job, trials, sensitivity, room, refined.chosen)
    verdict = guarded(job, assignment_of(job.units, chosen), uniforms, room)
    selected = job.score(verdict.winner.applied.tensors, "select")
    out, model = job.request.out, job.opened.model
    job.plan(job.steps(verdict.winner.assignment), job.budget).save(out / "plan.yaml")
    for point in points:
        budget = Budget(weight_bytes=point.weight_bytes)
        job.plan(job.steps(point.assignment), budget).save(out / "pareto" / f"{point.weight_bytes}.yaml")
    test, tokenizer = job.parts.test, job.opened.tokenizer
    before, texts_before = test.results(model, job.progress), continuations(test, tokenizer, model)
    rival = job.results(verdict.uniform.applied.tensors, test) if verdict.uniform is not None else None
    tensors = verdict.winner.applied.tensors
    device = device_of(model)
    model.cpu()
    stored = save_compressed(job.opened, tensors, out / "checkpoint")
    reloaded = reload(stored.directory)
    running = measure_running(
        (model, reloaded), next(iter(test.batches(1))).inputs, job.progress, (job.opened.file, stored.directory)
    )
    reloaded.to(device)
    after, texts_after = test.results(reloaded, job.progress), continuations(test, tokenizer, reloaded)
    del reloaded  # proving loads the checkpoint once more: never three models at a time
    finished = prove(job.opened, verdict.winner.applied, stored, next(iter(test.batches(4))).inputs)
    texts = (texts_before, texts_after)
    return Found(
        sensitivity=sensitivity,
        alternatives=[
            *does_it_pay(tried),
            *does_structure_pay(job.units, sensitivity.kl, reshaped, room),
        ],
        points=points,
        uniforms=uniforms,
        comparison=comparison,
        verdict=verdict,
        selected=selected,
        finished=finished,
        before=before,
        after=after,
        rival=rival,
        texts=texts,
        room=room,
        running=running,
    )
