"""What a step touches: ranges of the memories, and the banks of the unified one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from gossamer.accelerator.isa import BYTES
from gossamer.dataflow.engine import REGISTERS, IntegerEngine
from gossamer.dataflow.schedule import Add, Gemm, Load, Mode, Norm, Pattern, Space, Step, Store, Tensor


class Where(IntEnum):
    """Memories: those of `Space`, by the same numbers, and the outer one."""

    SRAM = Space.SRAM
    PARAMETERS = Space.PARAMETERS
    GROUPS = Space.GROUPS
    TABLES = Space.TABLES
    INSTRUCTIONS = Space.INSTRUCTIONS
    OUTER = 5


@dataclass(frozen=True)
class Access:
    """Lines, entries, group words, tables, instructions or (OUTER) bytes `start` … `stop` − 1."""

    where: Where
    start: int
    stop: int
    write: bool
    operand: str


def accesses(step: Step, engine: IntegerEngine, most: Sequence[int] = ()) -> list[Access]:
    """All that a step may touch, registers anywhere in 0 … `most` (of R[1], R[2], …)."""
    highest = [0, *most] + [0] * (REGISTERS - 1 - len(most))
    match step:
        case Load():
            return list(_load(step, engine, highest[step.register]))
        case Store():
            return list(_store(step, engine, highest[step.register]))
        case Gemm():
            return list(_gemm(step, engine, highest[step.register]))
        case Norm():
            wide = -(-2 * step.n // engine.depth)
            return [
                *_tensor(engine, step.a, step.m, wide, False, "a"),
                *_tensor(engine, step.out, step.m, wide if step.wide else -(-step.n // engine.depth), True, "out"),
                Access(Where.PARAMETERS, step.parameters, step.parameters + step.n, False, "parameters"),
            ]
        case Add():
            wide = -(-2 * step.n // engine.depth)
            return [
                *_tensor(engine, step.a, step.m, wide, False, "a"),
                *(_tensor(engine, step.b, step.m, wide, False, "b") if step.has_b else ()),
                *_tensor(engine, step.out, step.m, wide if step.wide else -(-step.n // engine.depth), True, "out"),
            ]
    return []


def clash(one: list[Access], other: list[Access], bank_lines: int) -> str | None:
    """Why two steps cannot run at the same time; none if they can."""
    for a in one:
        for b in other:
            if a.where != b.where:
                continue
            if (a.write or b.write) and a.start < b.stop and b.start < a.stop:
                return f"{a.operand} and {b.operand} meet in {a.where.name} {max(a.start, b.start)}"
            if a.where == Where.SRAM:
                low = max(a.start // bank_lines, b.start // bank_lines)
                if low <= min((a.stop - 1) // bank_lines, (b.stop - 1) // bank_lines):
                    return f"{a.operand} and {b.operand} use bank {low}"
    return None


def _tensor(
    engine: IntegerEngine, place: Tensor, rows: int, chunks: int, write: bool, operand: str
) -> Iterator[Access]:
    blocks = -(-(place.row + rows) // engine.line_rows)
    if place.pitch == chunks or blocks == 1:
        yield Access(Where.SRAM, place.line, place.line + blocks * chunks, write, operand)
        return
    for block in range(blocks):
        line = place.line + block * place.pitch
        yield Access(Where.SRAM, line, line + chunks, write, operand)


def _load(step: Load, engine: IntegerEngine, most: int) -> Iterator[Access]:
    far = step.address + most * step.address_step
    if step.pattern == Pattern.LINES:
        size = step.words(engine.line_rows, most) * engine.bus_bytes
        yield Access(Where.OUTER, step.address, far + size, False, "address")
        if step.space == Space.SRAM:
            yield Access(Where.SRAM, step.to.line, step.to.line - (-size // engine.line_bytes), True, "to")
            return
        first = step.to.line * engine.bus_bytes
        unit = {
            Space.PARAMETERS: 8,
            Space.GROUPS: engine.columns,
            Space.TABLES: 256,
            Space.INSTRUCTIONS: BYTES,
        }[step.space]
        yield Access(Where(int(step.space)), first // unit, -(-(first + size) // unit), True, "to")
        return
    count = step.rows(most)
    width = step.chunks * engine.depth
    whole = -(-width // engine.bus_bytes) * engine.bus_bytes
    yield Access(Where.OUTER, step.address, far + (count - 1) * step.row_pitch + whole, False, "address")
    if step.pattern == Pattern.ROWS:
        yield from _tensor(engine, step.to, count, step.chunks, True, "to")
    else:
        yield from _tensor(engine, step.to, width, -(-count // engine.depth), True, "to")


def _store(step: Store, engine: IntegerEngine, most: int) -> Iterator[Access]:
    if step.pattern == Pattern.LINES:
        yield Access(Where.SRAM, step.source.line, step.source.line + step.count, False, "source")
        yield Access(Where.OUTER, step.address, step.address + step.count * engine.line_bytes, True, "address")
        return
    yield from _tensor(engine, step.source, step.count, step.chunks, False, "source")
    across = (step.chunks - 1) * step.chunk_pitch + engine.depth
    first, last = step.row, step.row + most + step.count - 1
    rows = engine.line_rows
    low = step.address + first // rows * step.block_pitch
    low += first % rows * step.row_pitch if first // rows == last // rows else 0
    within = last % rows if first // rows == last // rows else rows - 1
    high = step.address + last // rows * step.block_pitch + within * step.row_pitch
    if step.block_pitch == rows * step.row_pitch:
        low, high = step.address + first * step.row_pitch, step.address + last * step.row_pitch
    yield Access(Where.OUTER, low, high + across, True, "address")


def _gemm(step: Gemm, engine: IntegerEngine, most: int) -> Iterator[Access]:
    n, k = step.sizes(most)
    tile = engine.columns * (2 if step.four_bit else 1)
    chunks, tiles = -(-k // engine.depth), -(-n // tile)
    wide = 2 if step.mode == Mode.INT16 else 1
    out = -(-n * wide // engine.depth)
    yield from _tensor(engine, step.a, step.m, chunks, False, "a")
    yield from _tensor(engine, step.w, tiles * engine.columns, chunks, False, "w")
    yield from _tensor(engine, step.out, step.m, out, True, "out")
    if step.aux.pitch:
        yield from _tensor(
            engine, step.aux, step.m, min(out, step.aux_period) if step.aux_period else out, False, "aux"
        )
    if step.mode not in (Mode.SCORE, Mode.VALUE):
        yield Access(Where.PARAMETERS, step.parameters, step.parameters + tiles * tile, False, "parameters")
    if step.table:
        yield Access(Where.TABLES, step.table - 1, step.table, False, "table")
    if step.four_bit:
        words = tiles * -(-chunks // step.group)
        yield Access(Where.GROUPS, step.groups, step.groups + words, False, "groups")
