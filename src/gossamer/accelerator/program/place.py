"""Where buffers lie: a planner of the unified memory's banks, and of the side memories.

Operands of one step lie in different banks (banks have one port). Where there is room, what a load writes lies in other
banks than what the step beside it uses, so that both run at once; where there is none, a fence will separate them.
Buffers whose lives do not overlap share lines. Greedy by size, as is usual for offline memory planning (Pisarchyk and
Lee 2020, arXiv 2001.03288); where that finds no room, first what has the fewest banks left (saturation, Brélaz 1979).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from heapq import heapify, heappop, heappush
from itertools import islice

from gossamer.accelerator.program.draft import Buffer, Draft, View
from gossamer.dataflow.cycles.program import step_cycles
from gossamer.dataflow.cycles.transfer import READ_LATENCY, WRITE_LATENCY
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Load, Space, Step, Store, Tensor, unit


class FullError(Exception):
    """A buffer that found no room: `buffer` and the memory it was meant for."""

    def __init__(self, buffer: Buffer) -> None:
        super().__init__(f"{buffer.name}: no room for {buffer.size} in {buffer.space.name}")
        self.buffer = buffer


@dataclass(eq=False)
class _Life:
    """A buffer with the steps over which it holds something, and what it must or should lie apart from."""

    buffer: Buffer
    first: int
    last: int
    apart: "set[_Life]" = field(default_factory=set, repr=False)
    aside: "set[_Life]" = field(default_factory=set, repr=False)
    later: "set[_Life]" = field(default_factory=set, repr=False)
    """As `aside`, of computations that begin while a load is under way; never more than a wish."""
    at: int = -1


class Beside(IntEnum):
    """Whether transfers have room beside computations."""

    NEVER = 0
    """Buffers are given up as early as possible."""
    OFTEN = 1
    """Buffers are kept for one computation longer, and lie in other banks where there are some."""
    ALWAYS = 2
    """They do lie in other banks."""


def place(draft: Draft, beside: Beside = Beside.OFTEN, most: Sequence[int] = ()) -> list[Step]:
    """The draft's steps with addresses.

    Args:
        draft: the steps.
        beside: what transfers are given room for.
        most: greatest value of each register.

    Raises:
        FullError: a buffer that finds no room.
    """
    lives = _lives(draft, beside > Beside.NEVER)
    if beside > Beside.NEVER:
        _wish(draft, lives, most)
    if beside == Beside.ALWAYS:
        for life in lives.values():
            life.apart |= life.aside
    sizes = _sizes(draft.engine)
    by_space: dict[Space, list[_Life]] = defaultdict(list)
    for life in lives.values():
        by_space[life.buffer.space].append(life)
    for space, members in by_space.items():
        bank = draft.engine.bank_lines if space == Space.SRAM else 0
        together = _together(members)
        try:
            for life in sorted(members, key=_by_size):
                _settle(life, together[life], sizes[space], bank)
        except FullError:
            if not bank:
                raise
            for life in members:
                life.at = -1
            for life in _by_saturation(members, bank):
                _settle(life, together[life], sizes[space], bank)
    return [_resolved(step, views, lives, draft.engine) for step, views in draft.steps]


def _sizes(engine: IntegerEngine) -> dict[Space, int]:
    return {
        Space.SRAM: engine.lines,
        Space.PARAMETERS: engine.parameters,
        Space.GROUPS: engine.groups,
        Space.TABLES: engine.tables,
    }


def _lives(draft: Draft, overlap: bool) -> dict[Buffer, _Life]:
    lives: dict[Buffer, _Life] = {}
    computes = [i for i, (step, _) in enumerate(draft.steps) if unit(step) == "compute"]
    position = 0
    for i, (step, views) in enumerate(draft.steps):
        while position < len(computes) and computes[position] < i:
            position += 1
        until = i
        if overlap:
            # a computation is under way until the next is issued; a store, until the computation after it is
            beyond = position + (unit(step) != "load")
            until = max(i, (computes[beyond] if beyond < len(computes) else len(draft.steps)) - 1)
        for view in views.values():
            life = lives.setdefault(view.buffer, _Life(view.buffer, i, i))
            life.last = max(life.last, until if not isinstance(step, Load) else i)
        operands = {lives[view.buffer] for view in views.values() if view.buffer.space == Space.SRAM}
        for one in operands:
            one.apart |= operands - {one}
        if overlap and isinstance(step, Load | Store):
            beside = position - 1 if isinstance(step, Load) else position
            if 0 <= beside < len(computes):
                for view in draft.steps[computes[beside]][1].values():
                    if view.buffer.space != Space.SRAM:
                        continue
                    other = lives.setdefault(view.buffer, _Life(view.buffer, i, i))
                    for one in operands - {other}:
                        one.aside.add(other)
                        other.aside.add(one)
    return lives


def _wish(draft: Draft, lives: dict[Buffer, _Life], most: Sequence[int]) -> None:
    """What a load writes lies aside of what is computed with until its time is up, or until it is waited for."""

    def cycles(step: Step) -> int:
        return step_cycles(draft.engine, step, (0, *most), READ_LATENCY, WRITE_LATENCY)

    for i, (step, views) in enumerate(draft.steps):
        if not isinstance(step, Load) or step.space != Space.SRAM:
            continue
        mine, left = lives[views["to"].buffer], cycles(step)
        for other, others in islice(draft.steps, i + 1, None):
            if unit(other) != "compute":
                continue
            theirs = {lives[view.buffer] for view in others.values() if view.buffer.space == Space.SRAM}
            if left <= 0 or mine in theirs:
                break
            left -= cycles(other)
            mine.later |= theirs
            for life in theirs:
                life.later.add(mine)


def _together(members: list[_Life]) -> dict[_Life, list[_Life]]:
    """Which buffers hold something at the same time."""
    together: dict[_Life, list[_Life]] = {life: [] for life in members}
    alive: list[_Life] = []
    for life in sorted(members, key=lambda life: life.first):
        alive = [other for other in alive if other.last >= life.first]
        for other in alive:
            together[life].append(other)
            together[other].append(life)
        alive.append(life)
    return together


def _by_size(life: _Life) -> tuple[int, int]:
    return -life.buffer.size, life.first


def _by_saturation(members: list[_Life], bank: int) -> Iterator[_Life]:
    """Whatever has the fewest banks left, while they are given their places."""
    heap = [(0, *_by_size(life), number) for number, life in enumerate(members)]
    numbers = {life: number for number, life in enumerate(members)}
    heapify(heap)
    while heap:
        shut, *_, number = heappop(heap)
        life = members[number]
        if life.at >= 0 or -shut != _saturation(life, bank):
            continue
        yield life
        for other in life.apart:
            if other.at < 0:
                heappush(heap, (-_saturation(other, bank), *_by_size(other), numbers[other]))


def _saturation(life: _Life, bank: int) -> int:
    """Banks that it must not lie in."""
    return len({b for other in life.apart if other.at >= 0 for b in _banks(other, bank)})


def _settle(life: _Life, together: list[_Life], size: int, bank: int) -> None:
    """Gives a buffer its place: apart from what it must, aside from what it should, then where banks are in use."""
    need, align = life.buffer.size, life.buffer.align
    taken = [(other.at, other.at + other.buffer.size) for other in together if other.at >= 0]
    starts = {0, *(stop for _, stop in taken), *(range(0, size, bank) if bank else ())}
    shut = {b for other in life.apart if other.at >= 0 for b in _banks(other, bank)}
    busy = {b for other in life.aside | life.later if other.at >= 0 for b in _banks(other, bank)}
    used = {b for start, stop in taken for b in range(start // bank, (stop - 1) // bank + 1)} if bank else set()
    best = None
    for start in sorted({-(-start // align) * align for start in starts}):
        stop = start + need
        if stop > size or any(start < high and low < stop for low, high in taken):
            continue
        banks = set(range(start // bank, (stop - 1) // bank + 1)) if bank else set()
        if banks & shut:
            continue
        cost = (len(banks & busy), len(banks), len(banks - used), start)
        if best is None or cost < best[0]:
            best = (cost, start)
    if best is None:
        raise FullError(life.buffer)
    life.at = best[1]


def _banks(life: _Life, bank: int) -> range:
    return range(life.at // bank, (life.at + life.buffer.size - 1) // bank + 1) if bank else range(0)


def _resolved(step: Step, views: dict[str, View], lives: dict[Buffer, _Life], engine: IntegerEngine) -> Step:
    return replace(step, **dict(_fields(views, lives, engine)))  # type: ignore[arg-type]


def _fields(
    views: dict[str, View], lives: dict[Buffer, _Life], engine: IntegerEngine
) -> Iterator[tuple[str, Tensor | int]]:
    for name, view in views.items():
        at = lives[view.buffer].at + view.offset
        space = view.buffer.space
        if space == Space.SRAM:
            yield name, Tensor(at, view.pitch, view.row)
        elif name == "to":
            entry = {Space.PARAMETERS: 8, Space.GROUPS: engine.columns, Space.TABLES: 256}[space]
            yield name, Tensor(at * entry // engine.bus_bytes, 0)
        else:
            yield name, at + 1 if name == "table" else at
