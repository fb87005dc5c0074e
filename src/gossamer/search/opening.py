"""Opening a job: the model, the data and the problem of a request, checked before any work."""

from dataclasses import replace

from gossamer.compress.apply import apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.core.budget import Budget
from gossamer.core.device import DEVICES, Device
from gossamer.core.errors import ModelError
from gossamer.core.progress import SILENT, Progress
from gossamer.core.runfolder import check_run_folder
from gossamer.engine.forward import named_device
from gossamer.models.accounting import account
from gossamer.models.containers import Containers
from gossamer.models.gguf_write import architecture_of
from gossamer.models.open import Opened, open_model
from gossamer.search.job import Job
from gossamer.search.limits import Limits, limits_of
from gossamer.search.parts import open_parts
from gossamer.search.request import OptimizeRequest, sizes_for
from gossamer.search.runtimes import RUNTIMES, Runtime
from gossamer.search.units import Granularity, Unit, fixed_bytes, units_of

LARGE = 50_000_000
"""Above this many parameters sensitivity is measured at the anchors only and the plan is not refined by measuring
around it, unless the effort is thorough."""

TRANSFORMS = {"awq": "awq_scales"}
"""Techniques whose names differ from what the request says."""

BLOCKWISE = 1_000_000_000
"""Above this many parameters `auto` granularity searches block by block."""


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
    device = DEVICES.load(request.device) if request.device is not None else None
    units, fixed, limits = _problem(request, opened, runtime, budget, device)
    sizes = sizes_for(request.task or str(opened.defaults.get("task")), request.effort)
    if is_thrifty(request, opened):
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


def is_thrifty(request: OptimizeRequest, opened: Opened) -> bool:
    """Whether the model is too large to measure everything."""
    return opened.hierarchy.parameters > LARGE and request.effort != "thorough"


def _granularity(request: OptimizeRequest, opened: Opened) -> Granularity:
    if request.granularity != "auto":
        return request.granularity
    return "block" if opened.hierarchy.parameters > BLOCKWISE else "layer"
