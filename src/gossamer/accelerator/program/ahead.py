"""Loads of constants come early, so that the memory port does not rest and no product waits for its weights."""

from collections.abc import Sequence

from gossamer.accelerator.program.access import Access, Where, accesses
from gossamer.accelerator.program.draft import Buffer, Draft, View
from gossamer.dataflow.cycles.program import step_cycles
from gossamer.dataflow.cycles.transfer import READ_LATENCY, WRITE_LATENCY
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Load, Space, Step, Store, unit


def constants_first(draft: Draft, most: Sequence[int] = ()) -> Draft:
    """The draft with, between two computations, the loads of what no step stores moved to the front.

    Behind a store they would wait at a fence that has nothing to do with them. They keep their order; what they write
    to is not in use yet. Then each comes before those computations that would not have to wait for it (`_Line`).
    `most`: greatest value of each register.
    """
    engine = draft.engine
    stored = [a for step, _ in draft.steps if isinstance(step, Store) for a in _outer(step, engine, most)]

    def constant(step: Step) -> bool:
        return isinstance(step, Load) and not any(
            mine.start < its.stop and its.start < mine.stop for mine in _outer(step, engine, most) for its in stored
        )

    constants = [constant(step) for step, _ in draft.steps]
    places, computed = [], 0
    for i, (step, _) in enumerate(draft.steps):
        computed += unit(step) == "compute"
        places.append((computed, unit(step) != "compute" and not constants[i], i))
    line = _Line(engine, most)
    for *_, i in sorted(places):
        line.add(*draft.steps[i], early=constants[i])
    out = Draft(engine)
    out.steps = line.steps
    return out


class _Line:
    """Steps in order, to which loads of constants come as early as they can without holding others up.

    A computation that needs what was loaded waits for every load before it. So a load passes none that does, no other
    load, and only as many as take its time. Steps are issued in order, and a load not before the one before it is done:
    there are computations between the two that take as long, or those behind would wait with it. Entries of side
    memories are few: their loads come before a long one.
    """

    def __init__(self, engine: IntegerEngine, most: Sequence[int]) -> None:
        self.engine, self.most = engine, most
        self.steps: list[tuple[Step, dict[str, View]]] = []
        self._waits: list[bool] = []  # computations that wait for loads: that need what was loaded since the last
        self._fresh: set[Buffer] = set()
        self._last = -1  # the last load's place
        self._short = 0  # where a load of a few entries goes: before the last one, if that is long and may wait

    def add(self, step: Step, views: dict[str, View], early: bool) -> None:
        """Adds a step, at the end if it is not to be early."""
        buffers = {view.buffer for view in views.values()}
        short = early and isinstance(step, Load) and step.space is not Space.SRAM
        at = self._short if short else self._early(step) if early else len(self.steps)
        self.steps.insert(at, (step, views))
        self._waits.insert(at, unit(step) == "compute" and not self._fresh.isdisjoint(buffers))
        if isinstance(step, Load):
            self._last = self._last + 1 if short else at
            self._short = self._short + 1 if short else at if early else at + 1
            if not any(self._waits[at:]):
                self._fresh |= buffers
        elif self._waits[at]:
            self._fresh.clear()

    def _early(self, step: Step) -> int:
        free = self._free()
        left = self._cycles(step)
        for i in range(len(self.steps) - 1, free - 1, -1):
            if unit(self.steps[i][0]) == "compute":
                left -= self._cycles(self.steps[i][0])
                if left <= 0 or self._waits[i]:
                    return i + 1
        return free

    def _free(self) -> int:
        """The first place at which the last load is done, if it began in its own; the end if it is not by then."""
        if self._last < 0:
            return 0
        left = self._cycles(self.steps[self._last][0])
        for i in range(self._last + 1, len(self.steps)):
            if left <= 0:
                return i
            if unit(self.steps[i][0]) == "compute":
                left -= self._cycles(self.steps[i][0])
        return len(self.steps)

    def _cycles(self, step: Step) -> int:
        return step_cycles(self.engine, step, (0, *self.most), READ_LATENCY, WRITE_LATENCY)


def _outer(step: Step, engine: IntegerEngine, most: Sequence[int]) -> list[Access]:
    return [access for access in accesses(step, engine, most) if access.where == Where.OUTER]
