"""Cycles of loads and stores, as `rtl/gs_load.v` and `rtl/gs_store.v` take them when the bus never stalls.

Addresses go out ahead of the data, so a transfer pays the memory's latency once and moves one piece a cycle after that.
A piece is what one access to the unified memory can take: a bus word of lines, a chunk of a row, the bytes of a
transposed row that fall into one line.
"""

from collections.abc import Sequence

from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Load, Pattern, Space, Store

READ_LATENCY = 40
"""Cycles from the address of a burst to its first word, where nothing else is said."""
WRITE_LATENCY = 20
"""Cycles from the last word of a burst to its answer, where nothing else is said."""
_NOTHING = 4
"""A transfer of nothing."""
_LOAD = 6
_STORE = 6


def load_cycles(engine: IntegerEngine, step: Load, registers: Sequence[int], read_latency: int) -> int:
    """Cycles from the one with `start_i` to the first with `busy_o` low again.

    Args:
        engine: its shape.
        step: the load.
        registers: R[0], R[1], …; missing ones are 0.
        read_latency: cycles from the address of a burst to its first word.
    """
    pieces = load_pieces(engine, step, registers)
    return _LOAD + read_latency + pieces if pieces else _NOTHING


def store_cycles(engine: IntegerEngine, step: Store, write_latency: int) -> int:
    """As `load_cycles`; `write_latency` is that from the last word of a burst to its answer."""
    words = step.count * (step.chunks if step.pattern is Pattern.ROWS else engine.line_bytes // engine.bus_bytes)
    return _STORE + write_latency + words if words else _NOTHING


def load_pieces(engine: IntegerEngine, step: Load, registers: Sequence[int]) -> int:
    """Writes to memory that a load makes."""
    value = registers[step.register] if 0 < step.register < len(registers) else 0
    if step.pattern is Pattern.LINES or step.space is not Space.SRAM:
        return step.words(engine.line_rows, value)
    count = step.rows(value)
    if step.pattern is Pattern.ROWS:
        return count * step.chunks
    width = step.chunks * engine.depth
    words = set(range(0, width, engine.bus_bytes))
    lines = set(range(-step.to.row % engine.line_rows, width, engine.line_rows))
    return count * len(words | lines)
