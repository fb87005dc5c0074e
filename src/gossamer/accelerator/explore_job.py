"""`gossamer accelerator explore`: engines for a model, from its name to files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gossamer.accelerator.area import AREAS, area_um2
from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.explore import GOALS, Goal, Grid, Point, choose, explore, front, parse_sweep
from gossamer.accelerator.limits import parse_limits
from gossamer.accelerator.shape_of import shape_of
from gossamer.accelerator.whole import Phase, whole
from gossamer.core.errors import SettingError
from gossamer.core.files import refuse_foreign, write_json, write_text, writing_directory
from gossamer.core.progress import SILENT, Progress
from gossamer.dataflow.cycles.program import timeline
from gossamer.dataflow.cycles.trace import bars, chrome_trace
from gossamer.dataflow.technology import TECHNOLOGIES

MARK = "exploration.json"
ENGINE = "engine.yaml"
TRACE = "trace.json"


def explore_job(
    model: str,
    *,
    budget: str = "",
    phase: Phase = "prefill",
    sequence: int = 128,
    part: str | None = None,
    config: str = "large",
    sweep: Sequence[str] = (),
    technology: str = "sg13g2",
    areas: str = "sg13g2",
    goal: Goal = "latency",
    out: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Times a model on every engine of a grid and chooses one within the budget.

    With `out`: a directory with the engine as YAML, the trace of one block on it, and the result, which has a
    `timeline` too.

    Raises:
        GossamerError: a model, budget or setting that is not understood; no engine that takes the model, or none that
            keeps the budget.
    """
    limits = parse_limits(budget)
    if phase not in ("prefill", "decode"):
        raise SettingError(f"phase is {phase!r}: prefill or decode")
    if goal not in GOALS:
        raise SettingError(f"goal is {goal!r}: {', '.join(GOALS)}")
    if sequence < 1:
        raise SettingError(f"sequence is {sequence}: at least 1 row")
    grid, base = parse_sweep(sweep, Grid()), ENGINES.load(config)
    process, area_model = TECHNOLOGIES.load(technology), AREAS.load(areas)
    if out is not None:
        refuse_foreign(out, MARK)
    shape = shape_of(model, part)
    if phase == "decode" and not shape.causal:
        raise SettingError(f"{shape.name} is no decoder: take prefill")
    points, skipped = explore(shape, phase, sequence, base, process, area_model, grid, progress)
    if not points:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in skipped.items())
        raise SettingError(f"no engine of the grid takes {shape.name}: {reasons}; sweep more memory or other sizes")
    chosen = choose(points, limits, goal)
    units = area_um2(chosen.engine, area_model)
    taken = whole(shape, phase, sequence, chosen.engine, process, bits=chosen.bits)
    spans = timeline(taken.program.schedule, taken.registers)
    best = front(points)
    result: dict[str, Any] = {
        "model": model, "shape": asdict(shape), "phase": phase, "sequence": sequence, "budget": limits.given,
        "goal": goal, "tried": grid.size, "skipped": skipped, "pareto": [point.told() for point in best],
        "points": [_told(point, best, chosen) for point in points],
        "chosen": {
            **chosen.told(), "engine": chosen.engine.model_dump(), "area_um2": units,
            "energy_parts_mj": taken.energy_mj,
        },
        "technology": process.model_dump(), "area_source": area_model.source,
        "timeline": {"cycles": spans[-1].issued + 1, "bars": [asdict(bar) for bar in bars(spans)]},
        "notes": [
            "all figures are estimates: cycles by the cycle model with a bus that never stalls, energy by the "
            f"technology's figures ({process.source}), area by a model of gates without wires",
            "what 4-bit weights lose in accuracy is not weighed here",
            "embedding, head and projector are not among the blocks that are counted",
        ],
    }  # fmt: skip
    if out is not None:
        with writing_directory(out) as folder:
            write_text(folder / ENGINE, yaml.safe_dump(chosen.engine.model_dump(), sort_keys=False))
            write_json(folder / TRACE, chrome_trace(spans, process.clock_mhz, f"one block of {shape.name}"))
            write_json(folder / MARK, result)
        result |= {"out": str(out), "engine_file": str(out / ENGINE), "trace": str(out / TRACE)}
    return result


def _told(point: Point, best: Sequence[Point], chosen: Point) -> dict[str, Any]:
    return {**point.told(), "pareto": point in best, "chosen": point is chosen}
