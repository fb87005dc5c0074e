"""Exact allocation: one choice for each unit, least total loss, within a budget of bytes.

This is the multiple-choice knapsack problem, min Σ loss[u][c] with Σ bytes[u][c] ≤ budget, solved to optimality as a
mixed-integer program by HiGHS (Huangfu and Hall, 2018) through scipy. Dominated choices are dropped first.
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


@dataclass(frozen=True)
class Option:
    """One choice of a unit: its bytes as stored and its loss (nats, not negative)."""

    bytes: int
    loss: float


def undominated(options: Sequence[Option]) -> list[int]:
    """Indices of the options that no other beats in both bytes and loss, by rising bytes."""
    order = sorted(range(len(options)), key=lambda index: (options[index].bytes, options[index].loss, index))
    kept: list[int] = []
    best = float("inf")
    for index in order:
        if options[index].loss < best:
            kept.append(index)
            best = options[index].loss
    return kept


def smallest(units: Sequence[Sequence[Option]]) -> int:
    """The least total bytes that any assignment needs."""
    return sum(min(option.bytes for option in options) for options in units)


def allocate(units: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The index of the chosen option of each unit. Raises `BudgetError` if even the smallest options exceed `budget`.

    Exact: the returned total loss is the least possible (HiGHS with zero gap); the total never exceeds the budget.
    """
    least = smallest(units)
    if least > budget:
        raise BudgetError(
            f"the weight budget cannot be met: its variable part is {format_bytes(max(budget, 0))} and the smallest "
            f"choices need {format_bytes(least)}"
        )
    kept = [undominated(options) for options in units]
    losses = np.array([units[u][index].loss for u, indices in enumerate(kept) for index in indices])
    sizes = np.array([units[u][index].bytes for u, indices in enumerate(kept) for index in indices], dtype=np.float64)
    owners = np.array([u for u, indices in enumerate(kept) for _ in indices])
    one_each = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))), shape=(len(units), len(owners)))
    spread = float(losses.max()) or 1.0
    limit = budget
    while True:
        # The solver works with tolerances; sizes are scaled to the budget and the integer total is checked after it.
        within = LinearConstraint((sizes / max(budget, 1))[None, :], -np.inf, limit / max(budget, 1))
        with open(os.devnull, "wb") as nowhere, native_output_to(nowhere.fileno()):  # HiGHS prints lines at times
            solution = milp(
                losses / spread,
                constraints=[LinearConstraint(one_each, 1, 1), within],
                integrality=np.ones(len(owners), dtype=np.int64),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        if solution.x is None:
            # Only tolerances can bring this about, since the smallest assignment fits.
            return [indices[0] for indices in kept]
        picked = np.flatnonzero(np.round(solution.x) == 1)
        choice = [kept[int(owners[index])][int(index - np.searchsorted(owners, owners[index]))] for index in picked]
        excess = sum(units[u][index].bytes for u, index in enumerate(choice)) - budget
        if excess <= 0:
            return choice
        limit -= excess
