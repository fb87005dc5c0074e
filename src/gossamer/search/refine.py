"""Refinement: losses do not quite add up, so the plan is improved by measuring around it.

Each round measures, on the compressed model itself, what one step up or down of every unit changes (the exchange rates
at the operating point), solves the allocation over those moves again, and tries the result. A change is kept only if it
is better on the data that chose it *and* on a part that it has not seen, which guards against fitting the fitness.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gossamer.search.allocate import Option, allocate
from gossamer.search.units import Costs, Unit, fits

Evaluate = Callable[[Sequence[int]], float]
"""The mean divergence of a whole choice."""

Neighbours = Callable[[Sequence[int], Sequence[Sequence[int]]], list[list[float]]]
"""Given a choice and, for every unit, other choices of that unit: the mean divergence with only that unit moved."""


@dataclass(frozen=True)
class Round:
    """One round: moves proposed, and the mean divergence before and after on both parts. `kept` tells the outcome."""

    moves: int
    select_before: float
    select_after: float
    confirm_before: float
    confirm_after: float
    kept: bool


@dataclass(frozen=True)
class Refined:
    """The choice of every unit after refinement, and what happened."""

    chosen: tuple[int, ...]
    rounds: tuple[Round, ...]


def refine(
    units: Sequence[Unit],
    chosen: Sequence[int],
    room: Costs,
    rounds: int,
    select: Evaluate,
    confirm: Evaluate,
    neighbours: Neighbours,
) -> Refined:
    """Improves `chosen` (within `room`, stays so) in up to `rounds` rounds.

    `select` and `confirm` score a whole choice on two disjoint parts, `neighbours` measures on the first of them.
    Each round costs two evaluations per unit.
    """
    current = list(chosen)
    log: list[Round] = []
    here, there = select(current), confirm(current)
    for _ in range(rounds):
        moves = _moves(units, current)
        others = [[move for move in row if move != index] for row, index in zip(moves, current, strict=True)]
        measured = neighbours(current, others)
        options = []
        for u, row in enumerate(moves):
            known = {**dict(zip(others[u], measured[u], strict=True)), current[u]: here}
            options.append([Option(units[u].choices[move].costs, known[move] - here) for move in row])
        lowest = min(option.loss for row in options for option in row)
        shifted = [[replace(option, loss=option.loss - lowest) for option in row] for row in options]
        proposal = [moves[u][index] for u, index in enumerate(allocate(shifted, room))]
        kept = False
        for candidate in _shortened(units, current, proposal, options, moves, room):
            near, far = select(candidate), confirm(candidate)
            kept = near < here and far < there
            changed = sum(a != b for a, b in zip(candidate, current, strict=True))
            log.append(Round(changed, here, near, there, far, kept))
            if kept:
                current, here, there = list(candidate), near, far
                break
        if not kept:
            break
    return Refined(tuple(current), tuple(log))


def _moves(units: Sequence[Unit], chosen: Sequence[int]) -> list[list[int]]:
    """For every unit: its present choice and its neighbours by bytes."""
    moves = []
    for unit, index in zip(units, chosen, strict=True):
        order = sorted(range(len(unit.choices)), key=lambda c: unit.choices[c].bytes)
        place = order.index(index)
        moves.append([order[p] for p in (place - 1, place, place + 1) if 0 <= p < len(order)])
    return moves


def _shortened(
    units: Sequence[Unit],
    current: Sequence[int],
    proposal: Sequence[int],
    options: Sequence[Sequence[Option]],
    moves: Sequence[Sequence[int]],
    room: Costs,
) -> list[list[int]]:
    """The proposal, then its best half and quarter, each filled up from the downward moves that pay for it."""
    changed = [u for u in range(len(units)) if proposal[u] != current[u]]
    loss = {u: options[u][moves[u].index(proposal[u])].loss for u in changed}
    gains = sorted((u for u in changed if loss[u] < 0), key=lambda u: loss[u])
    payers = sorted((u for u in changed if loss[u] >= 0), key=lambda u: loss[u])
    candidates: list[list[int]] = []
    for share in (1.0, 0.5, 0.25):
        candidate = list(current)
        for u in gains[: max(1, round(share * len(gains)))]:
            candidate[u] = proposal[u]
        for u in payers:
            if fits(units, candidate, room):
                break
            candidate[u] = proposal[u]
        if candidate != list(current) and fits(units, candidate, room) and candidate not in candidates:
            candidates.append(candidate)
    return candidates
