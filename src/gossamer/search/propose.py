"""Proposals: allocations that would be exact if losses were a little other than measured.

Losses of single units are measured on few examples and do not add up exactly, so the allocation that is best for them
is one of many about as good. Whole plans can be measured, and are: a population of exact allocations under perturbed
losses is thinned by successive halving (Jamieson and Talwalkar, arXiv 1502.07943), each round on more data.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gossamer.search.allocate import Option, allocate
from gossamer.search.units import Costs

SPREAD = (0.3, 0.6)
"""Standard deviations of the factors' logarithms, in turn."""

Measure = Callable[[Sequence[Sequence[int]], float], Sequence[float]]
"""The divergence of each of several whole choices on the first share (0 to 1) of the data."""


def population(options: Sequence[Sequence[Option]], room: Costs, count: int, seed: int) -> list[list[int]]:
    """Up to `count` different choices within `room`: the exact allocation, then those under perturbed losses."""
    random = np.random.default_rng(seed)
    found = {tuple(allocate(options, room)): None}
    for number in range(2 * count):
        if len(found) >= count:
            break
        factors = [np.exp(SPREAD[number % len(SPREAD)] * random.standard_normal(len(row))) for row in options]
        perturbed = [
            [replace(option, loss=option.loss * float(factor)) for option, factor in zip(row, some, strict=True)]
            for row, some in zip(options, factors, strict=True)
        ]
        found[tuple(allocate(perturbed, room))] = None
    return [list(chosen) for chosen in found]


def halving(candidates: Sequence[Sequence[int]], keep: int, measure: Measure) -> list[Sequence[int]]:
    """The `keep` best of the candidates, best first: the worse half leaves each round, and the data double."""
    rounds = max(0, int(np.ceil(np.log2(max(1, len(candidates)) / keep))))
    left = list(candidates)
    for number in range(rounds + 1):
        scores = measure(left, 2.0 ** (number - rounds))
        size = keep if number == rounds else max(keep, -(-len(left) // 2))
        left = [left[place] for place in np.argsort(scores, kind="stable")[:size]]
    return left
