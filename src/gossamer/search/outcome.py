"""The result of a job as data: what `optimize --json` prints and the report shows."""

import os
import platform
from dataclasses import dataclass
from typing import Any

import gossamer
from gossamer.core.outcome import Measure
from gossamer.evaluate.intervals import bootstrap_ratio
from gossamer.evaluate.meters import process_peak_bytes
from gossamer.evaluate.running import Running
from gossamer.models.containers import Containers
from gossamer.search.finish import Finished
from gossamer.search.front import Point
from gossamer.search.guard import Verdict
from gossamer.search.job import Job
from gossamer.search.runtime import sentences, sides
from gossamer.search.samples import answer_samples, continuation_samples
from gossamer.search.scorer import Score
from gossamer.search.sensitivity import Sensitivity
from gossamer.search.steps import loss_percent
from gossamer.search.units import Assignment, Costs, describe, fits, mean_bits, total_costs

Json = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """Everything that a job found out.

    `alternatives` tell whether sparsity, low rank or structure would pay, `comparison` how another kind of search did
    beside the exact one. `selected` is the kept plan's score on the `select` part; `before`, `after` and `rival` are
    the task's results of the unchanged model, the reloaded checkpoint and the uniform plan; `texts` are continuations
    before and after; `running` is what it took to run the unchanged model and the reloaded checkpoint, side by side.
    """

    sensitivity: Sensitivity
    alternatives: list[str]
    points: list[Point]
    uniforms: list[Point]
    comparison: str | None
    verdict: Verdict
    selected: Score
    finished: Finished
    before: Any
    after: Any
    rival: Any
    texts: tuple[list[tuple[str, str]], list[tuple[str, str]]]
    room: Costs
    running: Running


def result_of(job: Job, found: Found, seconds: float) -> Json:
    """The result: see `gossamer.report.schema.Result` for every key."""
    task, hierarchy = job.parts.test, job.opened.hierarchy
    before, after = task.summarise(found.before), task.summarise(found.after)
    winner = found.verdict.winner
    stored = found.finished.stored
    lost = loss_percent(task, before[task.metric].value, after[task.metric].value)
    floor = job.budget.max_loss_percent
    notes: list[Json] = [{"kind": "guard", "text": found.verdict.text}]
    if found.comparison is not None:
        notes.append({"kind": "note", "text": found.comparison})
    notes += [{"kind": "note", "text": text} for text in found.alternatives]
    notes += [{"kind": "container", "text": text} for text in stored.notes]
    notes += [{"kind": "warning", "text": text} for text in winner.applied.notes]
    if hierarchy.guessed:
        notes.append({"kind": "warning", "text": "The model's family is unknown: its structure was guessed."})
    if fits(job.units, [0] * len(job.units), found.room):
        notes.append({"kind": "note", "text": "The budget holds the whole 16-bit model: nothing had to be given up."})
    if not all(all(row) for row in found.sensitivity.measured):
        text = (
            "Sensitivity was measured at a few widths of every unit; the others were inferred from layer output errors."
        )
        notes.append({"kind": "note", "text": text})
    notes += [{"kind": "note", "text": text} for text in job.limits.sentences()]
    if job.transform:
        names = ", ".join(step.do for step in job.transform)
        text = f"The model was changed by {names} first, which keeps what it computes; baselines are of that form."
        notes.append({"kind": "note", "text": text})
    notes += [{"kind": "note", "text": text} for text in job.transform_notes]
    if job.runtime.name != "transformers":
        text = f"Layers take only formats that {job.runtime.name} runs; all others stay at 16 bits."
        notes.append({"kind": "note", "text": text})
    unmet = []
    if floor is not None and lost > floor:
        unit = "percentage points" if task.higher_is_better else "%"
        unmet.append(
            f"the quality floor is missed on the test data: {task.metric} lost {lost:.2f} {unit}, "
            f"at most {floor:g} was allowed"
        )
        notes.append({"kind": "warning", "text": unmet[0][0].upper() + unmet[0][1:] + "."})
    notes += [{"kind": "note", "text": text} for text in sentences(found.running)]
    unchanged, reloaded = sides(job.opened, stored, found.running)
    measured = {
        **after,
        "weight_bytes": Measure.exact(stored.weight_bytes),
        "saving_percent": Measure.exact(100 * (1 - stored.weight_bytes / job.dense_bytes)),
        f"{task.metric}_change": task.difference(found.before, found.after),
        "kl": _kl(winner.score),
        "bits": Measure.exact(mean_bits(hierarchy, winner.assignment)),
        **reloaded,
    }
    return {
        "plan": "plan.yaml",
        "report": "report.html",
        "checkpoint": "checkpoint",
        "model": {
            "name": job.request.model,
            "family": hierarchy.family,
            "fingerprint": job.opened.fingerprint,
            "parameters": hierarchy.parameters,
            "architecture": type(job.opened.model).__name__,
        },
        "task": {
            "name": task.name,
            "metric": task.metric,
            "higher_is_better": task.higher_is_better,
            "protocol": task.protocol,
        },
        "budget": job.budget.model_dump(exclude_none=True),
        "baseline": {
            "label": "16 bits",
            "measured": _dump({**before, "weight_bytes": Measure.exact(job.dense_bytes), **unchanged}),
            "estimated": _estimates(job, {}),
        },
        "measured": _dump(measured),
        "estimated": _estimates(job, winner.assignment),
        "uniform": _uniform(job, found),
        "pareto": _pareto(job, found),
        "pareto_loss": f"KL from the 16-bit model, nats per position, on {len(job.parts.select)} search examples",
        "parity": found.finished.parity,
        "sensitivity": _sensitivity(job, found.sensitivity),
        "layers": _layers(job, winner.assignment),
        "additivity": _additivity(job, found),
        "samples": [
            *answer_samples(task, found.before, found.after),
            *continuation_samples(*found.texts),
        ],
        "notes": notes,
        "unmet": unmet,
        "data": _data(job),
        "environment": environment(job.request.on),
        "command": job.request.command,
        "seconds": seconds,
        "peak_memory_bytes": process_peak_bytes(),
    }


def _dump(measured: dict[str, Measure]) -> Json:
    return {name: measure.model_dump() for name, measure in measured.items()}


def _estimates(job: Job, assignment: Assignment) -> dict[str, float]:
    return job.limits.estimates(total_costs(job.units, job.choices(assignment)))


def _kl(score: Score) -> Measure:
    return bootstrap_ratio(score.kl * score.weight, score.weight, over="guard examples")


def _uniform(job: Job, found: Found) -> Json | None:
    uniform = found.verdict.uniform
    if uniform is None:
        return None
    measured = {
        **job.parts.test.summarise(found.rival),
        "weight_bytes": Measure.exact(uniform.weight_bytes),
        "kl": _kl(uniform.score),
        "bits": Measure.exact(mean_bits(job.opened.hierarchy, uniform.assignment)),
    }
    return {"label": uniform.label, "measured": _dump(measured), "estimated": _estimates(job, uniform.assignment)}


def _pareto(job: Job, found: Found) -> list[Json]:
    hierarchy = job.opened.hierarchy
    points = [(point, "allocated") for point in found.points] + [(point, "uniform") for point in found.uniforms]
    rows = [
        {
            "weight_bytes": point.weight_bytes,
            "loss": point.kl,
            "kind": kind,
            "label": point.label if kind == "uniform" else f"{mean_bits(hierarchy, point.assignment):.2f} bits",
            "bits": mean_bits(hierarchy, point.assignment),
            "low": max(0.0, point.kl - 1.96 * point.kl_stderr),
            "high": point.kl + 1.96 * point.kl_stderr,
        }
        for point, kind in points
    ]
    winner, kl = found.verdict.winner, found.selected
    rows.append(
        {
            "weight_bytes": winner.weight_bytes,
            "loss": kl.mean_kl,
            "kind": "uniform" if winner is found.verdict.uniform else "allocated",
            "label": "the plan",
            "bits": mean_bits(hierarchy, winner.assignment),
            "low": max(0.0, kl.mean_kl - 1.96 * kl.kl_stderr),
            "high": kl.mean_kl + 1.96 * kl.kl_stderr,
            "chosen": True,
        }
    )
    return rows


def _sensitivity(job: Job, found: Sensitivity) -> list[Json]:
    return [
        {
            "unit": unit.name,
            "path": unit.layers[0].path,
            "modality": unit.modality,
            "block": unit.block,
            "choice": choice.label,
            "bits": choice.bits,
            "bytes": choice.bytes,
            "kl": found.kl[u][c],
            "kl_stderr": found.stderr[u][c],
            "loss_delta": found.loss_delta[u][c],
        }
        for u, unit in enumerate(job.units)
        for c, choice in enumerate(unit.choices)
        if c > 0 and found.measured[u][c]
    ]


def _layers(job: Job, assignment: dict[str, Any]) -> list[Json]:
    rows = []
    containers = Containers.of(job.opened.model)
    for layer in job.opened.hierarchy.layers():
        scheme = assignment.get(layer.path)
        free = layer.tied_to is not None and scheme is None and layer.tied_to not in assignment
        rows.append(
            {
                "path": layer.path,
                "bits": scheme.bits if scheme else 16,
                "choice": describe(scheme) if scheme else "16 bits",
                "weight_bytes": 0 if free else containers.bytes(layer, scheme),
                "parameters": layer.rows * layer.columns,
            }
        )
    return rows


def _additivity(job: Job, found: Found) -> Json:
    points = [
        {"label": point.label, "predicted": point.predicted, "measured": point.kl, "stderr": point.kl_stderr}
        for point in (*found.points, *found.uniforms)
        if point.kl > 0
    ]
    return {"unit": "KL, nats per position", "points": points}


def _data(job: Job) -> list[Json]:
    roles = {
        "calibrate": "calibration",
        "measure": "sensitivity",
        "select": "search",
        "confirm": "confirmation",
        "guard": "guard",
    }
    split = str(job.parts.settings.get("split", ""))
    rows: list[Json] = [
        {
            "role": role,
            "name": job.parts.data,
            "n": job.parts.counts[part],
            "split": split,
            "sha256": job.parts.sha256,
            "seed": job.request.seed,
        }
        for part, role in roles.items()
    ]
    test = job.parts.test.protocol
    rows.append(
        {
            "role": "final test",
            "name": str(test.get("data", job.parts.data)),
            "n": len(job.parts.test),
            "split": str(test.get("split") or "held-out part"),
            "sha256": str(test.get("sha256", "")),
        }
    )
    return rows


def environment(on: str = "cpu") -> Json:
    """Versions and machine, for the record; the GPU too where the work was done on one."""
    import torch
    import transformers

    return {
        "gossamer": gossamer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name(on)} if torch.device(on).type == "cuda" else {}),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
