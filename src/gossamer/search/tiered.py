"""Tiered search: first one level for the whole model, then for blocks, then for single units (as QSLM does).

Each tier starts from what the one above has found and looks only at what it can mend. A cheap gate, the sum of the
units' own losses, spares measuring proposals that cannot be any good.
"""

from collections.abc import Callable, Iterable, Sequence

from gossamer.search.allocate import Option
from gossamer.search.propose import Measure
from gossamer.search.units import Costs, Unit, fits, total_bytes

GATE = 1.5
"""A proposal is measured only if its summed loss is at most so many times that of the plan it would replace."""


def tiered(
    units: Sequence[Unit],
    options: Sequence[Sequence[Option]],
    room: Costs,
    measure: Measure,
    track: Callable[[Iterable[Sequence[int]]], Iterable[Sequence[int]]] = iter,
) -> list[int]:
    """The choice of every unit within `room`. `options` hold the units' own losses, by choice."""
    ladders = [sorted(range(len(unit.choices)), key=lambda c: unit.choices[c].bytes) for unit in units]
    plan = _global(units, ladders, room)
    (best,) = measure([plan], 1.0)
    blocks = _blocks(units)
    alone = [[u] for u in range(len(units))]
    for tier in (blocks, alone) if len(blocks) < len(alone) else (alone,):
        for group in track(sorted(tier, key=lambda members: -_loss(options, plan, members))):
            proposal = _raised(units, ladders, options, plan, group, tier, room)
            if proposal is None or _loss(options, proposal) > GATE * _loss(options, plan):
                continue
            (found,) = measure([proposal], 1.0)
            if found < best:
                plan, best = proposal, found
    return plan


def _global(units: Sequence[Unit], ladders: Sequence[Sequence[int]], room: Costs) -> list[int]:
    """Every unit at the same rung of its ladder, the highest that fits."""
    rungs = max(len(ladder) for ladder in ladders)
    plans = [[ladder[min(rung, len(ladder) - 1)] for ladder in ladders] for rung in range(rungs)]
    return max((plan for plan in plans if fits(units, plan, room)), key=lambda plan: total_bytes(units, plan))


def _blocks(units: Sequence[Unit]) -> list[list[int]]:
    """Units by block; those outside blocks by modality."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for u, unit in enumerate(units):
        groups.setdefault((unit.modality, unit.block), []).append(u)
    return list(groups.values())


def _raised(
    units: Sequence[Unit],
    ladders: Sequence[Sequence[int]],
    options: Sequence[Sequence[Option]],
    plan: Sequence[int],
    group: Sequence[int],
    tier: Sequence[Sequence[int]],
    room: Costs,
) -> list[int] | None:
    """The plan with `group` one rung up, paid for by the groups that lose least by going one down; None if none do."""
    proposal = _moved(ladders, plan, group, +1)
    if proposal == list(plan):
        return None
    payers = sorted(
        (other for other in tier if other != group),
        key=lambda other: _loss(options, _moved(ladders, plan, other, -1), other) - _loss(options, plan, other),
    )
    for other in payers:
        if fits(units, proposal, room):
            return proposal
        proposal = _moved(ladders, proposal, other, -1)
    return proposal if fits(units, proposal, room) else None


def _moved(ladders: Sequence[Sequence[int]], plan: Sequence[int], group: Sequence[int], by: int) -> list[int]:
    moved = list(plan)
    for u in group:
        place = ladders[u].index(moved[u]) + by
        moved[u] = ladders[u][min(max(place, 0), len(ladders[u]) - 1)]
    return moved


def _loss(options: Sequence[Sequence[Option]], plan: Sequence[int], members: Sequence[int] | None = None) -> float:
    """The summed own losses of the members' choices (of all units without)."""
    return sum(options[u][plan[u]].loss for u in (range(len(plan)) if members is None else members))
