"""Proposals fit the budget, the exact allocation first; halving finds the best under noise that averages out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.search.allocate import Option, allocate
from gossamer.search.propose import halving, population

OPTIONS = [
    [Option((16,), 0.0), *(Option((bits,), 4.0**-bits * (1 + number / 7)) for bits in (2, 3, 4, 5, 6, 8))]
    for number in range(8)
]


@settings(max_examples=25)
@given(st.integers(20, 120), st.integers(1, 20), st.integers(0, 3))
def test_the_population_is_diverse_and_affordable(budget, count, seed):
    found = population(OPTIONS, (budget,), count, seed)
    assert found[0] == allocate(OPTIONS, (budget,))
    assert len(found) == len({tuple(chosen) for chosen in found}) <= count
    assert all(sum(OPTIONS[u][c].costs[0] for u, c in enumerate(chosen)) <= budget for chosen in found)
    assert found == population(OPTIONS, (budget,), count, seed)
    if budget == 40 and count > 4:
        assert len(found) > 4


@pytest.mark.parametrize(("count", "keep"), [(1, 1), (3, 4), (12, 4), (25, 2), (64, 1)])
def test_halving_finds_the_best_and_spends_little(count, keep):
    asked = []

    def measure(choices, share):
        asked.extend([share] * len(choices))
        noise = [np.random.default_rng(number).standard_normal() * (1 - share) for (number,) in choices]
        return [abs(number - count // 2) + 0.4 * some for (number,), some in zip(choices, noise, strict=True)]

    best = halving([[number] for number in range(count)], keep, measure)
    assert best[0] == [count // 2]
    assert len(best) == min(keep, count)
    assert max(asked) == 1
    assert sum(asked) <= keep * (2 + np.ceil(np.log2(max(1, count / keep))))
