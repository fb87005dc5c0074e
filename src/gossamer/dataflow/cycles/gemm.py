"""Cycles of a `Gemm`: closed form, equal to the RTL's (`gs_gemm`)."""

from collections.abc import Sequence

from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Gemm, Mode, Tensor

DIVIDER = 18
"""Cycles that the first drain of a row tile of a VALUE waits for its rows' reciprocals."""
SETUP = 4
"""From the start to the first read."""
ARRAY = 5
"""From a tile's last read to its first window of drained columns."""
POST = 12
"""From a drained window to the cycle after its write, where the unit rests."""


def gemm_cycles(engine: IntegerEngine, step: Gemm, registers: Sequence[int] = ()) -> int:
    """Cycles from the one with `start_i` to the first with `busy_o` low again.

    A tile takes as many cycles as it has chunks, or as the drain of the one before it needs, if that is more.

    Args:
        engine: its shape.
        step: the product.
        registers: R[0], R[1] …; only the step's own is read, missing ones are 0.
    """
    register = registers[step.register] if 0 < step.register < len(registers) else 0
    n, k = step.sizes(register)
    chunks = -(-k // engine.depth)
    tile = engine.columns * (1 + step.four_bit)
    tiles = -(-n // tile)
    size = 2 if step.mode is Mode.INT16 else 1
    full = tile // engine.lanes
    last = -(-n * size // engine.depth) * (engine.depth // (size * engine.lanes)) - (tiles - 1) * full
    rows = row_tiles(engine, step)
    wait = DIVIDER if step.mode is Mode.VALUE else 0
    first = full if tiles > 1 else last
    row = (tiles - 1) * max(chunks, full) + max(chunks, last) + max(chunks, first + wait) - max(chunks, first)
    last += wait if tiles == 1 else 0
    between = rows * row - max(chunks, last)
    softmax = engine.depth // engine.lanes + 1 if step.mode is Mode.SCORE else 0
    return SETUP + chunks - 1 + between + ARRAY - 1 + last + POST + softmax


def row_tiles(engine: IntegerEngine, step: Gemm) -> int:
    """Row tiles: at most `rows` rows, none across a line of `a`, `out` or a used `aux`."""
    used = step.mode in (Mode.MULTIPLY, Mode.ROTARY) or (step.mode is Mode.INT16 and step.aux.pitch > 0)
    tensors: list[Tensor] = [step.a, step.out, *([step.aux] if used else [])]
    count = done = 0
    while done < step.m:
        fits = [engine.line_rows - (tensor.row + done) % engine.line_rows for tensor in tensors]
        done += min(engine.rows, step.m - done, *fits)
        count += 1
    return count
