"""Engines of many sizes for one model: latency, area and energy of each, the Pareto front, the best within a budget.

Cycles are the cycle model's, energy the technology's, area the area model's: all estimates.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal

from pydantic import ValidationError

from gossamer.accelerator.area import AreaModel, area_um2
from gossamer.accelerator.limits import Limits
from gossamer.accelerator.shapes import Shape
from gossamer.accelerator.whole import Phase, utilisation, whole
from gossamer.core.described import fault
from gossamer.core.errors import BudgetError, SettingError
from gossamer.core.progress import SILENT, Progress
from gossamer.core.units import format_bytes, parse_bytes
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.technology import Technology

Goal = Literal["latency", "area", "energy"]
GOALS: dict[str, str] = {"latency": "latency_ms", "area": "area_mm2", "energy": "energy_mj"}
_SHOWN = {"latency_ms": "ms", "area_mm2": "mm²", "energy_mj": "mJ"}


@dataclass(frozen=True)
class Grid:
    """What is swept, every combination; `memory` is the unified memory's bytes, `bits` those of the blocks' weights."""

    rows: tuple[int, ...] = (8, 16, 32)
    columns: tuple[int, ...] = (8, 16, 32)
    depth: tuple[int, ...] = (8, 16)
    lanes: tuple[int, ...] = (2, 4)
    memory: tuple[int, ...] = (512 << 10, 1 << 20, 2 << 20, 4 << 20)
    bits: tuple[int, ...] = (8, 4)

    @property
    def size(self) -> int:
        """Combinations."""
        count = 1
        for field in fields(self):
            count *= len(getattr(self, field.name))
        return count


@dataclass(frozen=True)
class Point:
    """An engine, the bits of its weights, and what a run of the model takes on it."""

    engine: IntegerEngine
    bits: int
    cycles: int
    utilisation_percent: float
    latency_ms: float
    area_mm2: float
    energy_mj: float

    def told(self) -> dict[str, float]:
        """Numbers by name."""
        engine = self.engine
        return {
            "rows": engine.rows, "columns": engine.columns, "depth": engine.depth, "lanes": engine.lanes,
            "bank_lines": engine.bank_lines, "sram_bytes": engine.sram_bytes, "bits": self.bits,
            "pes": engine.multipliers, "cycles": self.cycles, "utilisation_percent": self.utilisation_percent,
            "latency_ms": self.latency_ms, "area_mm2": self.area_mm2, "energy_mj": self.energy_mj,
        }  # fmt: skip

    def __str__(self) -> str:
        engine = self.engine
        return (
            f"{engine.rows} × {engine.columns} × {engine.depth}, {engine.lanes} lanes, "
            f"{format_bytes(engine.sram_bytes)}, {self.bits} bits: {self.latency_ms:.3g} ms, {self.area_mm2:.3g} mm², "
            f"{self.energy_mj:.3g} mJ"
        )


def parse_sweep(texts: Sequence[str], grid: Grid) -> Grid:
    """The grid with `rows=8,16` or `memory=1MiB,4MiB` in place of its own.

    Raises:
        SettingError: a name or value that is not understood.
    """
    names = [field.name for field in fields(Grid)]
    for text in texts:
        name, _, values = text.partition("=")
        if name not in names or not values:
            raise SettingError(
                f"sweep {text!r} is not understood: write NAME=VALUE,VALUE with one of {', '.join(names)}"
            )
        try:
            found = tuple(parse_bytes(each) if name == "memory" else int(each) for each in values.split(","))
        except (ValueError, BudgetError) as error:
            raise SettingError(f"sweep {text!r}: whole numbers are needed, of memory such as 2MiB") from error
        if name == "bits" and not set(found) <= {4, 8}:
            raise SettingError(f"sweep {text!r}: weights have 4 or 8 bits")
        grid = replace(grid, **{name: tuple(dict.fromkeys(found))})
    return grid


def explore(
    shape: Shape,
    phase: Phase,
    sequence: int,
    base: IntegerEngine,
    technology: Technology,
    areas: AreaModel,
    grid: Grid,
    progress: Progress = SILENT,
) -> tuple[list[Point], dict[str, int]]:
    """Every engine of the grid that can be and takes the model; and why others were left out, counted.

    What the grid does not say is `base`'s; norms treat as many rows as the array has, and the bus is at least as wide
    as a chunk and at most as a line. Engines for 8-bit weights have cells without a split.
    """
    points: list[Point] = []
    skipped: Counter[str] = Counter()
    for engine, bits in progress.track(_candidates(base, grid), "engines", grid.size):
        if isinstance(engine, str):
            skipped[engine] += 1
            continue
        try:
            found = whole(shape, phase, sequence, engine, technology, bits=bits)
        except SettingError as error:
            skipped[_plain(str(error).split("; an engine with")[0].split(": ")[-1])] += 1
            continue
        points.append(
            Point(
                engine,
                bits,
                found.cycles,
                100 * utilisation(shape, phase, sequence, found, bits),
                found.cycles / technology.clock_mhz / 1e3,
                sum(area_um2(engine, areas).values()) / 1e6,
                sum(found.energy_mj.values()),
            )
        )
    return points, dict(skipped)


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats: none is as good in latency, area and energy and better in one. By latency."""
    kept: list[Point] = []
    for point in sorted(points, key=_figures):
        if not any(all(a <= b for a, b in zip(_figures(other), _figures(point), strict=True)) for other in kept):
            kept.append(point)
    return kept


def choose(points: Sequence[Point], limits: Limits, goal: Goal = "latency") -> Point:
    """The best of the points within the limits.

    Raises:
        BudgetError: there is none: which limit none meets, or that they exclude each other, and the nearest point.
    """
    feasible = [point for point in points if limits.excess(point.told()) <= 0]
    if feasible:
        return min(feasible, key=lambda point: (point.told()[GOALS[goal]], *_figures(point)))
    nearest = min(points, key=lambda point: limits.excess(point.told()))
    missed = []
    for name, bound in limits.given.items():
        least = min(point.told()[name] for point in points)
        if least > bound:
            what = name.split("_")[0]
            missed.append(f"{what} {bound:g} {_SHOWN[name]} is below the least, {least:.3g} {_SHOWN[name]}")
    why = "; ".join(missed) or f"{' and '.join(name.split('_')[0] for name in limits.given)} exclude each other"
    raise BudgetError(f"none of {len(points)} engines is within the budget: {why}. The nearest is {nearest}")


def _candidates(base: IntegerEngine, grid: Grid) -> Iterator[tuple[IntegerEngine | str, int]]:
    """Engines with the bits of their weights; or why one cannot be."""
    for rows, columns, depth, lanes, memory, bits in product(
        grid.rows, grid.columns, grid.depth, grid.lanes, grid.memory, grid.bits
    ):
        line_bytes = max(rows, columns) * depth
        numbers = {
            "rows": rows, "columns": columns, "depth": depth, "lanes": lanes, "norm_rows": rows,
            "four_bit": bits == 4, "bank_lines": memory // (base.banks * line_bytes),
            "bus_bytes": min(max(base.bus_bytes, depth), line_bytes),
        }  # fmt: skip
        try:
            yield IntegerEngine(**{**base.model_dump(), **numbers}), bits
        except ValidationError as error:
            yield _plain(fault(error)), bits


def _plain(said: str) -> str:
    """What an error says, without the numbers of the case."""
    return re.sub(r"\d[\d,]*", "…", said)


def _figures(point: Point) -> tuple[float, float, float]:
    return point.latency_ms, point.area_mm2, point.energy_mj
