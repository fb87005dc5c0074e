"""Allocation is exact: no assignment within the budget has less loss."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.core.errors import BudgetError
from gossamer.search.allocate import Option, allocate, smallest, undominated

OPTION = st.builds(
    Option, bytes=st.integers(1, 10**6), loss=st.floats(0, 10, allow_subnormal=False).map(lambda x: round(x, 6))
)
UNITS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(UNITS, st.floats(0, 1))
def test_equals_brute_force(units, share):
    least = smallest(units)
    most = sum(max(option.bytes for option in options) for options in units)
    budget = int(least + share * (most - least))
    chosen = allocate(units, budget)
    total = sum(units[u][c].bytes for u, c in enumerate(chosen))
    loss = sum(units[u][c].loss for u, c in enumerate(chosen))
    assert total <= budget
    best = min(
        sum(option.loss for option in combination)
        for combination in itertools.product(*units)
        if sum(option.bytes for option in combination) <= budget
    )
    assert loss <= best + 1e-6 * max(1.0, best)


@given(st.lists(OPTION, min_size=1, max_size=8))
def test_undominated_options_are_a_falling_curve(options):
    kept = [options[index] for index in undominated(options)]
    assert all(a.bytes < b.bytes and a.loss > b.loss for a, b in itertools.pairwise(kept))
    assert all(any(k.bytes <= o.bytes and k.loss <= o.loss for k in kept) for o in options)


def test_infeasible_budget_names_what_is_needed():
    with pytest.raises(BudgetError, match="smallest"):
        allocate([[Option(100, 0.0)], [Option(50, 1.0), Option(80, 0.0)]], 149)
    assert allocate([[Option(100, 0.0)], [Option(50, 1.0), Option(80, 0.0)]], 150) == [0, 0]


def test_many_units_with_byte_sizes_near_the_budget_stay_within_it():
    units = [[Option(1_000_003 + 7 * u, 0.0), Option(500_001 + 3 * u, 0.1 + 0.01 * u)] for u in range(120)]
    budget = sum(options[1].bytes for options in units) + 60 * 500_123
    chosen = allocate(units, budget)
    assert sum(units[u][c].bytes for u, c in enumerate(chosen)) <= budget
