"""Evolution: whole plans mutate and the fittest stays (EvoPress, arXiv 2410.14649).

An offspring moves some units down and others up, so that the plan stays within its limits. Offspring are thinned by
successive halving, the last ones are compared with their parent on all data, and the parent stays unless it is beaten.
Nothing is assumed about how losses add up; the price is many evaluations of whole plans.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gossamer.search.propose import Measure, halving
from gossamer.search.units import Costs, Unit, fits

FINALISTS = 2
"""Offspring of a generation that are measured on all data."""


def evolve(
    units: Sequence[Unit],
    start: Sequence[int],
    room: Costs,
    measure: Measure,
    generations: int,
    offspring: int,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[int]:
    """The fittest choice found from `start` (within `room`, as is every offspring)."""
    random = np.random.default_rng(seed)
    ladders = [_ladder(unit) for unit in units]
    parent = tuple(start)
    for _ in track(range(generations)):
        young = {tuple(mutate(units, ladders, parent, room, random)): None for _ in range(offspring)}
        young.pop(parent, None)
        finalists = [parent, *(tuple(child) for child in halving(list(young), FINALISTS, measure))]
        parent = finalists[int(np.argmin(measure(finalists, 1.0)))]
    return list(parent)


def mutate(
    units: Sequence[Unit],
    ladders: Sequence[Sequence[int]],
    parent: Sequence[int],
    room: Costs,
    random: np.random.Generator,
) -> list[int]:
    """A few random units one level up, then others one level down until they fit the room again."""
    child = list(parent)
    raised = random.choice(len(units), size=min(len(units), 1 + random.geometric(0.5)), replace=False).tolist()
    for u in raised:
        child[u] = _moved(ladders[u], child[u], +1)
    others = [u for u in random.permutation(len(units)).tolist() if u not in raised]
    for u in others:
        if fits(units, child, room):
            break
        child[u] = _moved(ladders[u], child[u], -1)
    return child if fits(units, child, room) else list(parent)


def _ladder(unit: Unit) -> list[int]:
    """The unit's choices by rising bytes."""
    return sorted(range(len(unit.choices)), key=lambda c: unit.choices[c].bytes)


def _moved(ladder: Sequence[int], choice: int, by: int) -> int:
    return ladder[min(max(ladder.index(choice) + by, 0), len(ladder) - 1)]
