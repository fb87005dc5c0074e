"""Fences where they are needed: before a step that uses what another unit may still be working on.

A unit does one step at a time and the sequencer issues in order, so at most one step of each other unit is under way.
"""

from collections.abc import Sequence

from gossamer.accelerator.program.access import Access, accesses, clash
from gossamer.dataflow.engine import UNITS, IntegerEngine
from gossamer.dataflow.schedule import Fence, Step, unit


def fenced(steps: Sequence[Step], engine: IntegerEngine, most: Sequence[int] = ()) -> list[Step]:
    """The steps with fences; `most` is the greatest value of each register."""
    out: list[Step] = []
    under_way: dict[str, list[Access]] = {}
    for step in steps:
        by = unit(step)
        if by is None:
            raise AssertionError("fences are written here")
        touched = accesses(step, engine, most)
        wait = {
            other
            for other, its in under_way.items()
            if other != by and clash(touched, its, engine.bank_lines) is not None
        }
        if wait:
            out.append(Fence(**{name: name in wait for name in UNITS}))
            for name in wait:
                del under_way[name]
        under_way[by] = touched
        out.append(step)
    return out
