"""The Pareto front over the byte budget, and the uniform settings that every plan is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gossamer.models.packed import Scheme
from gossamer.search.allocate import Option, allocate, smallest
from gossamer.search.units import Assignment, Costs, Unit

UNIFORM: tuple[Scheme, ...] = (
    Scheme(2, 64),
    Scheme(3, 64),
    Scheme(4, 64),
    Scheme(5, 64),
    Scheme(6, 64),
    Scheme(8, None),
)
"""The uniform baselines."""


@dataclass(frozen=True)
class Point:
    """A plan on the plane of bytes and divergence: `predicted` by adding up its units, `kl` as measured."""

    label: str
    assignment: Assignment
    weight_bytes: int
    predicted: float
    kl: float
    kl_stderr: float


def options_of(units: Sequence[Unit], losses: Sequence[Sequence[float]]) -> list[list[Option]]:
    """The allocation problem of units and the losses of their choices (nats)."""
    return [
        [Option(choice.costs, max(0.0, loss)) for choice, loss in zip(unit.choices, row, strict=True)]
        for unit, row in zip(units, losses, strict=True)
    ]


def allocations(
    units: Sequence[Unit], options: Sequence[Sequence[Option]], count: int, others: Costs = ()
) -> list[list[int]]:
    """Different exact allocations for `count` sizes in geometric steps, from the least possible to 16 bits.

    `others` is the room for further resources than bytes, which all of them keep.
    """
    dense, least = sum(unit.choices[0].bytes for unit in units), smallest(options)
    sizes = [max(int(value), least) for value in np.geomspace(least, dense, count).round()]
    return [list(chosen) for chosen in dict.fromkeys(tuple(allocate(options, (size, *others))) for size in sizes)]


def undefeated(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both bytes and measured divergence, by rising bytes."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.weight_bytes, point.kl)):
        if not kept or point.kl < kept[-1].kl:
            kept.append(point)
    return kept
