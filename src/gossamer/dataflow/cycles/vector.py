"""Cycles of `Norm` and `Add`: from the one with `start_i` to the first with `busy_o` low again, equal to the RTL's.

Rows go in groups of at most `norm_rows` that cross no line of any tensor; each group is led through the pipeline on its
own, `lanes` elements of every row a cycle.
"""

from collections.abc import Iterator

from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Add, Norm, Tensor

_NORM = 29
"""A norm's way from the first element to the sums, through one inverse root, and from the last element to memory."""
_ADD = 9


def norm_cycles(engine: IntegerEngine, step: Norm) -> int:
    """Two passes over a group's elements, and its rows one by one through the inverse root."""
    slices = -(-step.n // engine.lanes)
    return 1 + sum(2 * slices + count + _NORM for count in _groups(engine, step.m * (step.n > 0), step.a, step.out))


def add_cycles(engine: IntegerEngine, step: Add) -> int:
    """One pass over a group's elements."""
    slices = -(-step.n // engine.lanes)
    places = (step.a, step.b, step.out) if step.has_b else (step.a, step.out)
    return 1 + sum(slices + _ADD for _ in _groups(engine, step.m * (step.n > 0), *places))


def _groups(engine: IntegerEngine, m: int, *places: Tensor) -> Iterator[int]:
    """Rows of each group."""
    done = 0
    while done < m:
        room = (engine.line_rows - (place.row + done) % engine.line_rows for place in places)
        count = min(engine.norm_rows, m - done, *room)
        done += count
        yield count
