"""The main job: open → sensitivity → allocate → refine → guard → export → verify.

Every step is keyed by its inputs in the run folder, so a job that was interrupted goes on where it stopped and ends
with the same bytes.
"""

import time
from dataclasses import replace
from typing import Any

from gossamer.compress.apply import apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.core.budget import Budget
from gossamer.core.device import Device, load_device
from gossamer.core.errors import ModelError
from gossamer.core.files import write_json
from gossamer.core.progress import SILENT, Progress
from gossamer.core.runfolder import check_run_folder
from gossamer.core.units import format_bytes
from gossamer.engine.forward import device_of, named_device
from gossamer.evaluate.running import measure_running
from gossamer.models.accounting import account
from gossamer.models.checkpoint import reload, save_compressed
from gossamer.models.containers import Containers
from gossamer.models.gguf_write import architecture_of
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import Scheme
from gossamer.search.alternatives import alternatives, does_it_pay
from gossamer.search.bank import Bank, fill_bank
from gossamer.search.finish import prove
from gossamer.search.job import BANK_TECHNIQUE, Job
from gossamer.search.limits import Limits, limits_of
from gossamer.search.outcome import Found, result_of
from gossamer.search.parts import open_parts
from gossamer.search.request import OptimizeRequest, sizes_for
from gossamer.search.runtimes import RUNTIMES, Runtime
from gossamer.search.samples import continuations
from gossamer.search.sensitivity import Sensitivity, measure_sensitivity
from gossamer.search.steps import allocated, guarded, pareto, room_of, searched
from gossamer.search.structure import changes, does_structure_pay
from gossamer.search.units import Granularity, Unit, assignment_of, describe, fixed_bytes, least_costs, units_of

LARGE = 50_000_000
"""Above this many parameters sensitivity is measured at the anchors only and the plan is not refined by measuring
around it, unless the effort is thorough."""

ANCHORS = (Scheme(2, 64), Scheme(4, 64))
"""The choices at which the units of large models are measured."""

TRANSFORMS = {"awq": "awq_scales"}
"""Techniques whose names differ from what the request says."""

BLOCKWISE = 1_000_000_000
"""Above this many parameters `auto` granularity searches block by block."""


def optimize(request: OptimizeRequest, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs the job and returns the result (see `gossamer.report.schema.Result`), which is also in `out/result.json`.

    With `dry_run` nothing is written: the returned object tells what would be done. Raises `GossamerError` subclasses
    for what the user can mend.
    """
    started = time.monotonic()
    job = open_job(request, progress)
    if request.dry_run:
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
    result = result_of(job, search(job), time.monotonic() - started)
    write_json(request.out / "result.json", result)
    return result


def open_job(request: OptimizeRequest, progress: Progress = SILENT) -> Job:
    """Opens the model and the data of a request, checks that its limits can be kept, and transforms the model if asked.

    Writes nothing; a dry run does not transform.
    """
    place = named_device(request.on)
    opened = open_model(request.model)
    check_run_folder(request.out, opened.fingerprint)
    runtime = RUNTIMES[request.runtime]
    if runtime.name == "llama.cpp":
        architecture_of(opened)
    dense = account(opened, {}).weight_bytes
    budget = request.budget(dense)
    device = load_device(request.device) if request.device is not None else None
    units, fixed, limits = _problem(request, opened, runtime, budget, device)
    sizes = sizes_for(request.task or str(opened.defaults.get("task")), request.effort)
    if _thrifty(request, opened):
        sizes = replace(sizes, rounds=0)
    parts = open_parts(request, opened, sizes)
    opened.model.to(place)
    job = Job(request, opened, parts, sizes, budget, units, fixed, dense, limits, runtime, progress)
    if request.transform == "none" or request.dry_run:
        return job
    steps = preset_steps(TRANSFORMS.get(request.transform, request.transform), opened.hierarchy)
    done = apply_steps(opened.model, opened.hierarchy, steps, job.calibration, progress)
    opened = replace(opened, hierarchy=done.hierarchy, config=opened.model.config)
    units, fixed, limits = _problem(request, opened, runtime, budget, device)
    return replace(
        job, opened=opened, units=units, fixed=fixed, limits=limits, transform=steps, transform_notes=tuple(done.notes)
    )


def _problem(
    request: OptimizeRequest, opened: Opened, runtime: Runtime, budget: Budget, device: Device | None
) -> tuple[tuple[Unit, ...], int, Limits]:
    """The units with their choices, the bytes that none of them holds, and the limits, which can be kept."""
    units = units_of(
        opened.hierarchy, Containers.of(opened.model), _granularity(request, opened), runtime.grid, runtime.serves
    )
    if not units:
        raise ModelError(f"{request.model} has no layer that {runtime.name} runs in low bits: choose another --runtime")
    fixed = fixed_bytes(account(opened, {}).weight_bytes, units)
    units, limits = limits_of(opened, units, fixed, budget, device, request.context)
    limits.check(units)
    return units, fixed, limits


def profile(job: Job) -> tuple[Bank, Sensitivity]:
    """The bank of candidates and the sensitivity of every unit to every choice."""
    shared = (job.folder, job.key, job.opened.model, job.opened.hierarchy, job.units)
    bank = fill_bank(*shared, BANK_TECHNIQUE, job.calibration, job.walk, job.progress)
    anchors = frozenset(describe(scheme) for scheme in ANCHORS) if _thrifty(job.request, job.opened) else None
    return bank, measure_sensitivity(*shared, job.scorer("measure"), job.walk, bank, job.progress, anchors)


def search(job: Job) -> Found:
    """All steps from the bank to the verified checkpoint. Afterwards the opened model holds the result's weights."""
    job.progress.say(f"{job.request.model}: {len(job.units)} units, {format_bytes(job.dense_bytes)} at 16 bits")
    bank, sensitivity = profile(job)
    trials, reshaped = alternatives(job), changes(job)
    points, uniforms = pareto(job, bank, sensitivity)
    room = room_of(job, bank, points)
    refined = allocated(job, bank, sensitivity, room)
    chosen, comparison = searched(job, bank, sensitivity, room, refined.chosen)
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
            *does_it_pay(trials),
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


def _thrifty(request: OptimizeRequest, opened: Opened) -> bool:
    """Whether the model is too large to measure everything."""
    return opened.hierarchy.parameters > LARGE and request.effort != "thorough"


def _granularity(request: OptimizeRequest, opened: Opened) -> Granularity:
    if request.granularity != "auto":
        return request.granularity
    return "block" if opened.hierarchy.parameters > BLOCKWISE else "layer"
