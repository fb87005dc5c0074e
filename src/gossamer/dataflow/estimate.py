"""Pre-flight: what compressing a model would give and cost, before anything is loaded.

The weight bytes are exact (see `models/accounting.py`). Peak memory and time come from a model of the job that `apply`
runs (see `job.py`) and are labelled as estimates; so is the disk space, the exported checkpoint and the small files
that go with it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.device import DEVICES, Device
from gossamer.core.errors import PlanError
from gossamer.core.plan import Plan, load_plan
from gossamer.core.technique import build, known_techniques
from gossamer.dataflow.job import Calibration, Job
from gossamer.models.accounting import account, parse_rule, schemes_for
from gossamer.models.hierarchy import Hierarchy

if TYPE_CHECKING:
    from gossamer.models.open import Opened
    from gossamer.models.packed import Scheme

DEFAULT_DEVICE = "laptop-cpu"


def estimate(
    ref: str,
    *,
    plan: Path | Plan | None = None,
    bits: int | None = None,
    group: int | None = None,
    keep: Sequence[str] = (),
    scales: bool = True,
    device: str | Device | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """What compressing `ref` by a plan, or every block at `bits`, gives and costs; a config alone is enough.

    `keep` holds rules such as `language.blocks.{0,31}.*=16`. `scales=False` counts codes only. Keys: `model`, `family`,
    `device`, `estimated.{weight_bytes,saving_percent,peak_memory_bytes,disk_bytes,time_s}`, `dense_weight_bytes` (the
    same model at 16 bits, which the saving is against), `scale_bytes`, `scales_counted`, `fits_memory`, `assumptions`
    and `warnings`. Raises `PlanError` unless exactly one of `plan` and `bits` is given; `ModelError`; `DeviceError`.
    """
    from gossamer.models.open import open_model

    if (plan is None) == (bits is None):
        raise PlanError("give either a plan (--plan PLAN.yaml) or one width for all blocks (--bits 4)")
    if plan is not None and (group is not None or keep):
        raise PlanError("--group and --keep go with --bits; a plan already says which layer gets what")
    machine = device if isinstance(device, Device) else DEVICES.load(device or DEFAULT_DEVICE)
    rules = [parse_rule(text) for text in keep]
    opened = open_model(ref, weights=False)
    warnings: list[str] = []
    loaded = load_plan(plan) if isinstance(plan, Path) else plan
    if loaded is not None:
        schemes = schemes_of_plan(loaded, opened.hierarchy, warnings)
        if loaded.model.family != opened.hierarchy.family:
            warnings.append(
                f"the plan was made for family {loaded.model.family}, the model is {opened.hierarchy.family}"
            )
    else:
        assert bits is not None
        schemes = schemes_for(opened.hierarchy, bits, group, rules)
    warnings += _group_warnings(schemes, opened.hierarchy, group)
    if opened.hierarchy.guessed:
        warnings.append(f"no row describes the family {opened.hierarchy.family!r}: its blocks were found by inspection")
    sizes = account(opened, schemes, scales=scales)
    exported = sizes.weight_bytes if scales else sizes.weight_bytes + sizes.scale_bytes
    calibrated = loaded is None or loaded.calibration is not None
    job = Job.of(opened, schemes, calibration or _calibration_of(loaded), calibrated)
    peak = job.peak_bytes()
    return {
        "model": opened.source,
        "family": opened.hierarchy.family,
        "device": machine.name,
        "estimated": {
            "weight_bytes": sizes.weight_bytes,
            "saving_percent": round(sizes.saving_percent, 4),
            "peak_memory_bytes": peak,
            "disk_bytes": exported + _small_files(opened),
            "time_s": round(job.seconds(machine, opened.stored_bytes or sizes.dense_bytes, exported), 2),
        },
        "dense_weight_bytes": sizes.dense_bytes,
        "scale_bytes": sizes.scale_bytes,
        "scales_counted": scales,
        "fits_memory": peak <= machine.memory_bytes,
        "assumptions": job.assumptions(machine),
        "warnings": warnings,
    }


def schemes_of_plan(plan: Plan, hierarchy: Hierarchy, warnings: list[str]) -> "dict[str, Scheme]":
    """Layer path → grid that the plan's quantisers end with; other techniques are named in `warnings`.

    Raises `PlanError` for a step that selects nothing.
    """
    from gossamer.models.packed import Scheme

    schemes: dict[str, Scheme] = {}
    for step in plan.compression:
        settings: Any = build(step.do, step.settings) if step.do in known_techniques() else None
        get = (lambda key, default, s=settings: getattr(s, key, default)) if settings else step.settings.get
        width = get("bits", None)
        if not isinstance(width, int):
            warnings.append(f"the effect of {step.do} at {step.at} on size is not counted")
            continue
        layers = hierarchy.select(step.at)
        if not layers:
            raise PlanError(f"plan step at {step.at!r} selects no layer of this model")
        for layer in layers:
            scheme = Scheme(width, get("group", None), get("symmetric", True), get("format", "int"))
            schemes[layer.path] = scheme.fitted(layer.columns)
    return schemes


def _calibration_of(plan: Plan | None) -> Calibration:
    """What a plan says about its calibration data; a preset's, where there is no plan."""
    if plan is None or plan.calibration is None:
        return Calibration()
    context = plan.calibration.settings.get("context")
    return Calibration(plan.calibration.samples, context if isinstance(context, int) else None)


def _group_warnings(schemes: "dict[str, Scheme]", hierarchy: Hierarchy, group: int | None) -> list[str]:
    smaller = [path for path, scheme in schemes.items() if scheme.group != group] if group is not None else []
    if not smaller:
        return []
    columns = {layer.path: layer.columns for layer in hierarchy.layers()}
    first = smaller[0]
    used = schemes[first].group or "whole rows"
    return [f"group {group} does not divide {len(smaller)} layers; {first} ({columns[first]} columns) takes {used}"]


def _small_files(opened: "Opened") -> int:
    if opened.file is None or not opened.file.is_dir():
        return 0
    return sum(
        path.stat().st_size for path in opened.file.iterdir() if path.suffix in (".json", ".model", ".txt", ".jinja")
    )
