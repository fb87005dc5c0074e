"""Pre-flight: what compressing a model would give and cost, before anything is loaded.

The weight bytes are exact (see `models/accounting.py`). Peak memory and time are a simple model of the calibrated job
that `apply` runs, open → calibrate block by block → quantise → export, and are labelled as estimates:

- **Peak memory** = the model in float32 + the hidden states of all calibration tokens before and after one block
  + one block's Hessians (float64 up to 2,048 columns, float32 beyond; layers of a fused set share one) with the three
  float32 matrices that factorising the largest takes + the logits of one batch, twice + a byte for each quantised
  weight + the runtime (Python and its libraries).
- **Time** = operations / (rate × efficiency) + bytes / bandwidth + bytes / disk rate, where operations are two forward
  passes over the calibration tokens, the Hessians' outer products, their factorisation and the error diffusion.
- **Disk** = the exported checkpoint and the small files that go with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.device import Device, load_device
from gossamer.core.errors import PlanError
from gossamer.core.plan import Plan, load_plan
from gossamer.core.technique import build, known_techniques
from gossamer.models.accounting import account, parse_rule, schemes_for
from gossamer.models.hierarchy import Block, Hierarchy

if TYPE_CHECKING:
    from gossamer.models.open import Opened
    from gossamer.models.packed import Scheme

DEFAULT_DEVICE = "laptop-cpu"
EFFICIENCY = 0.4
"""Share of the peak rate that the job's matrix products reach."""
RUNTIME_BYTES = 450_000_000
"""Resident size of Python with torch and transformers imported, before any model."""
BATCH = 4
"""Samples that run at once."""


@dataclass(frozen=True)
class Calibration:
    """What the job calibrates on: `samples` of `tokens` text tokens each, with an image or sound each where taken."""

    samples: int = 64
    tokens: int = 256


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
    machine = device if isinstance(device, Device) else load_device(device or DEFAULT_DEVICE)
    rules = [parse_rule(text) for text in keep]
    opened = open_model(ref, weights=False)
    warnings: list[str] = []
    if plan is not None:
        loaded = plan if isinstance(plan, Plan) else load_plan(plan)
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
    job = _Job.of(opened, schemes, calibration or Calibration())
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
    from gossamer.models.packed import Scheme, fitting_group

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
            schemes[layer.path] = Scheme(
                width, fitting_group(layer.columns, get("group", None)), get("symmetric", True)
            )
    return schemes


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


@dataclass(frozen=True)
class _Job:
    """The sizes that peak memory and time are computed from. `operations` counts a multiply-accumulate as two."""

    parameters: int
    quantised: int
    width: int
    vocabulary: int
    samples: int
    tokens: int
    vectors: int
    hessian_bytes: int
    operations: float

    @classmethod
    def of(cls, opened: "Opened", schemes: "dict[str, Scheme]", calibration: Calibration) -> "_Job":
        from gossamer.models.work import work_of

        hierarchy = opened.hierarchy
        work = work_of(hierarchy, opened.config)
        chosen = [layer for layer in hierarchy.layers() if layer.path in schemes]
        vectors = calibration.samples * calibration.tokens
        forward = vectors * (work.per_token or 0)
        forward += calibration.samples * ((work.per_image or 0) + (work.per_audio_window or 0))
        inputs = {layer.unit: layer.columns for layer in chosen if layer.kind != "embedding"}
        solving = sum(2.0 * layer.rows * layer.columns**2 for layer in chosen if layer.kind != "embedding")
        gathering = sum(2.0 * vectors * columns**2 + 4.0 * columns**3 for columns in inputs.values())
        heads = [part for part in hierarchy.modalities if part.name == "head"]
        return cls(
            parameters=hierarchy.parameters,
            quantised=sum(layer.rows * layer.columns for layer in chosen),
            width=_width(opened.config),
            vocabulary=max((layer.rows for part in heads for layer in part.layers), default=0),
            samples=calibration.samples,
            tokens=calibration.tokens,
            vectors=vectors,
            hessian_bytes=max((_hessian_bytes(block, schemes) for block in hierarchy.blocks()), default=0),
            operations=4.0 * forward + gathering + solving,
        )

    def peak_bytes(self) -> int:
        """Peak resident memory."""
        states = 2 * 4 * self.vectors * self.width
        logits = 2 * 4 * BATCH * self.tokens * self.vocabulary
        return RUNTIME_BYTES + 4 * self.parameters + self.quantised + states + logits + self.hessian_bytes

    def seconds(self, device: Device, read: int, written: int) -> float:
        """Wall time on `device`."""
        compute = self.operations / (EFFICIENCY * device.rate("float32"))
        batches = -(-self.samples // BATCH)
        traffic = (2 * batches * 4 * self.parameters + 6 * self.quantised) / device.bandwidth_bytes_per_s
        return compute + traffic + (read + written) / device.disk_bytes_per_s

    def assumptions(self, device: Device) -> list[str]:
        """What the figures take for granted, in words."""
        return [
            f"calibration on {self.samples} samples of {self.tokens} tokens, {BATCH} at a time",
            f"matrix products reach {EFFICIENCY:.0%} of {device.rate('float32') / 1e9:.0f} float32 GFLOP/s",
            "weight bytes are exact for the exported checkpoint; peak memory and time are a model, not a measurement",
        ]


def _hessian_bytes(block: Block, schemes: "dict[str, Scheme]") -> int:
    """One Hessian for each distinct input of a block's quantised layers, and the work of factorising the largest."""
    inputs = {layer.unit: layer.columns for layer in block.layers if layer.path in schemes}
    kept = sum((8 if columns <= 2048 else 4) * columns**2 for columns in inputs.values())
    return kept + 3 * 4 * max(inputs.values(), default=0) ** 2


def _width(config: Any) -> int:
    text = getattr(config, "text_config", config)
    for key in ("hidden_size", "d_model", "n_embd"):
        value = getattr(text, key, None)
        if isinstance(value, int):
            return value
    return 0
