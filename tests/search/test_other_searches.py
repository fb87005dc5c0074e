"""Evolution and the tiered search keep the budget, never end worse than they start, and come near the exact optimum."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.search.allocate import Option, allocate
from gossamer.search.evolution import evolve
from gossamer.search.tiered import tiered
from gossamer.search.units import Choice, Unit, total_bytes

BITS = (16, 2, 3, 4, 5, 6, 8)


def problem(blocks, weights):
    units, options = [], []
    for number, weight in enumerate(weights):
        size = 10 * (1 + number % 3)
        choices = tuple(Choice(f"{bits} bits", bits, (), bits * size) for bits in BITS)
        units.append(Unit(f"u{number}", "language", number % blocks, (), choices))
        options.append([Option(c.costs, 0.0 if c.bits == 16 else weight * 4.0**-c.bits) for c in choices])
    return tuple(units), options


def loss(options, chosen):
    return sum(options[u][c].loss for u, c in enumerate(chosen))


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 100.0), min_size=4, max_size=12), st.integers(22, 120), st.integers(0, 3))
def test_both_keep_the_budget_and_improve_on_the_uniform_start(weights, tenths, seed):
    units, options = problem(3, weights)
    budget = tenths * sum(unit.choices[1].bytes for unit in units) // 20
    uniform = [1] * len(units)
    level = max((c for c in range(len(BITS)) if total_bytes(units, [c] * len(units)) <= budget), key=lambda c: BITS[c])
    start = [level] * len(units)

    def measure(choices, share):
        return [loss(options, chosen) for chosen in choices]

    for found in (
        tiered(units, options, (budget,), measure),
        evolve(units, start, (budget,), measure, 10, 8, seed),
    ):
        assert total_bytes(units, found) <= budget
        assert loss(options, found) <= loss(options, start) <= loss(options, uniform)
    assert evolve(units, start, (budget,), measure, 3, 8, seed) == evolve(units, start, (budget,), measure, 3, 8, seed)


def test_they_come_near_the_exact_optimum_of_an_additive_problem():
    units, options = problem(4, [0.1, 30, 1, 5, 0.3, 60, 2, 0.05])
    budget = total_bytes(units, [2] * len(units))
    best, uniform = loss(options, allocate(options, (budget,))), loss(options, [2] * len(units))

    def measure(choices, share):
        return [loss(options, chosen) for chosen in choices]

    evolved = evolve(units, [2] * len(units), (budget,), measure, 60, 16, 0)
    assert best <= loss(options, evolved) < 0.5 * uniform
    found = loss(options, tiered(units, options, (budget,), measure))
    assert best <= found < 0.7 * uniform


def test_the_tiered_search_does_not_measure_hopeless_proposals():
    units, options = problem(4, [1e6, *[1e-6] * 7])
    asked = []

    def measure(choices, share):
        asked.extend(map(tuple, choices))
        return [loss(options, chosen) for chosen in choices]

    tiered(units, options, (total_bytes(units, [2] * len(units)),), measure)
    assert all(chosen[0] in (0, 2, 3, 4, 5, 6) for chosen in asked)
    assert len(asked) > 1
