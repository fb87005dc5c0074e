"""Allocation is exact: no assignment within the room has less loss."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.core.errors import BudgetError
from gossamer.search.allocate import Option, allocate, smallest, undominated

LOSS = st.floats(0, 10, allow_subnormal=False).map(lambda x: round(x, 6))
OPTION = st.builds(Option, costs=st.tuples(st.integers(1, 10**6), st.integers(0, 1000).map(float)), loss=LOSS)
UNITS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def totals(options):
    return tuple(map(sum, zip(*(option.costs for option in options), strict=True)))


def within(options, room):
    return all(cost <= most for cost, most in zip(totals(options), room, strict=True))


@settings(max_examples=60)
@given(UNITS, st.floats(0, 1), st.floats(0, 1))
def test_equals_brute_force(units, share, other):
    ranges = [
        (
            sum(min(option.costs[place] for option in options) for options in units),
            sum(max(option.costs[place] for option in options) for options in units),
        )
        for place in (0, 1)
    ]
    room = tuple(int(least + part * (most - least)) for part, (least, most) in zip((share, other), ranges, strict=True))
    possible = [combination for combination in itertools.product(*units) if within(combination, room)]
    if not possible:
        with pytest.raises(BudgetError):
            allocate(units, room)
        return
    chosen = [units[u][c] for u, c in enumerate(allocate(units, room))]
    assert within(chosen, room)
    best = min(sum(option.loss for option in combination) for combination in possible)
    assert sum(option.loss for option in chosen) <= best + 1e-6 * max(1.0, best)


@given(st.lists(OPTION, min_size=1, max_size=8))
def test_undominated_options_hold_a_better_one_for_every_other(options):
    def beats(one, other):
        return one.loss <= other.loss and all(a <= b for a, b in zip(one.costs, other.costs, strict=True))

    kept = [options[index] for index in undominated(options)]
    assert not any(beats(a, b) for a, b in itertools.permutations(kept, 2))
    assert all(any(beats(k, option) for k in kept) for option in options)


def test_infeasible_room_says_what_is_at_fault():
    units = [[Option((100,), 0.0)], [Option((50,), 1.0), Option((80,), 0.0)]]
    assert smallest(units) == 150
    with pytest.raises(BudgetError, match="smallest"):
        allocate(units, (149,))
    assert allocate(units, (150,)) == [0, 0]
    opposed = [[Option((10, 5.0), 1.0), Option((20, 1.0), 1.0)]]
    assert allocate(opposed, (20, 1.0)) == [1]
    with pytest.raises(BudgetError, match="cannot be met together"):
        allocate(opposed, (10, 1.0))


def test_many_units_with_byte_sizes_near_the_budget_stay_within_it():
    units = [[Option((1_000_003 + 7 * u,), 0.0), Option((500_001 + 3 * u,), 0.1 + 0.01 * u)] for u in range(120)]
    budget = sum(options[1].costs[0] for options in units) + 60 * 500_123
    chosen = allocate(units, (budget,))
    assert sum(units[u][c].costs[0] for u, c in enumerate(chosen)) <= budget
