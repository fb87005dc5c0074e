"""Exact allocation: one choice for each unit, least total loss, within what there is of every resource.

This is the multiple-choice knapsack problem, min Σ loss[u][c] with Σ cost[u][c][r] ≤ room[r] for every resource r
(bytes first), solved to optimality as a mixed-integer program by HiGHS (Huangfu and Hall, 2018) through scipy.
Dominated choices are dropped first.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from gossamer.core.errors import BudgetError
from gossamer.core.native import native_output_to
from gossamer.core.units import format_bytes
from gossamer.search.units import TOLERANCE, Costs


@dataclass(frozen=True)
class Option:
    """One choice of a unit: what it takes of every resource, bytes as stored first, and its loss (nats, ≥ 0)."""

    costs: Costs
    loss: float


def undominated(options: Sequence[Option]) -> list[int]:
    """Indices of the options that no other beats in loss and in every resource, by rising bytes."""
    order = sorted(range(len(options)), key=lambda index: (*options[index].costs, options[index].loss, index))
    kept: list[int] = []
    for index in order:
        if not any(_beats(options[other], options[index]) for other in kept):
            kept.append(index)
    return kept


def _beats(one: Option, other: Option) -> bool:
    cheaper = all(mine <= theirs for mine, theirs in zip(one.costs, other.costs, strict=True))
    return cheaper and one.loss <= other.loss


def smallest(units: Sequence[Sequence[Option]]) -> int:
    """The least total bytes that any assignment needs."""
    return sum(min(int(option.costs[0]) for option in options) for options in units)


def allocate(units: Sequence[Sequence[Option]], room: Costs) -> list[int]:
    """The index of the chosen option of each unit. Raises `BudgetError` if no assignment fits `room`.

    Exact: the returned total loss is the least possible (HiGHS with zero gap); the totals never exceed the room.
    """
    least = smallest(units)
    if least > room[0]:
        raise BudgetError(
            f"the weight budget cannot be met: its variable part is {format_bytes(max(room[0], 0))} and the smallest "
            f"choices need {format_bytes(least)}"
        )
    kept = [undominated(options) for options in units]
    losses = np.array([units[u][index].loss for u, indices in enumerate(kept) for index in indices])
    costs = np.array([units[u][index].costs for u, indices in enumerate(kept) for index in indices], dtype=np.float64)
    owners = np.array([u for u, indices in enumerate(kept) for _ in indices])
    first = np.array([np.searchsorted(owners, u) for u in range(len(units))])
    one_each = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))), shape=(len(units), len(owners)))
    most = np.array(room, dtype=np.float64)
    scales = np.where(np.isfinite(most) & (most > 0), most, 1.0)
    spread = float(losses.max()) or 1.0
    limit = most.copy()
    while True:
        # The solver works with tolerances; costs are scaled to the room and the true totals are checked after it.
        within = LinearConstraint((costs / scales).T, -np.inf, limit / scales)
        with open(os.devnull, "wb") as nowhere, native_output_to(nowhere.fileno()):  # HiGHS prints lines at times
            solution = milp(
                losses / spread,
                constraints=[LinearConstraint(one_each, 1, 1), within],
                integrality=np.ones(len(owners), dtype=np.int64),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        # Where tolerances alone leave the solver without a solution, the smallest options are tried as they are.
        picked = first if solution.x is None else np.flatnonzero(np.round(solution.x) == 1)
        excess = costs[picked].sum(0) - most
        excess[1:] -= TOLERANCE * scales[1:]
        if (excess <= 0).all():
            return [kept[int(owners[index])][int(index - first[owners[index]])] for index in picked]
        if solution.x is None:
            raise BudgetError("the limits cannot be met together: each can alone; allow more of one of them")
        limit -= np.maximum(excess, 0)
