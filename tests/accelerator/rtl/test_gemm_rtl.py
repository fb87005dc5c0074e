"""gs_gemm against golden arithmetic, bit for bit, and against the cycle model."""

from functools import cache

import numpy as np
import pytest
from gemm_unit import LINES, Memories, Unit, golden

from gossamer.dataflow.cycles.gemm import gemm_cycles
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import NOWHERE, Gemm, Mode, Tensor

SMALL = {"parameters": 256, "groups": 64, "tables": 2, "chunks": 64}
ENGINES = {
    "square": IntegerEngine(**SMALL),
    "wide": IntegerEngine(rows=4, columns=8, depth=4, lanes=1, bus_bytes=4, **SMALL),
    "tall": IntegerEngine(rows=16, columns=8, depth=8, lanes=2, bus_bytes=32, four_bit=False, **SMALL),
}


@cache
def unit(name: str) -> Unit:
    return Unit(ENGINES[name])


def random_memories(engine: IntegerEngine, random: np.random.Generator) -> Memories:
    entries = np.stack(
        [
            random.integers(-(1 << 13), 1 << 13, engine.parameters),
            random.integers(0, 1 << 16, engine.parameters),
            random.integers(18, 32, engine.parameters),
        ],
        axis=1,
    )
    extreme = random.random(engine.parameters) < 0.05
    entries[extreme, 0] = random.choice([-(1 << 31), (1 << 31) - 1], extreme.sum())
    entries[extreme, 2] = random.choice([0, 1, 47], extreme.sum())
    return Memories(
        engine,
        random.integers(0, 256, (LINES, engine.line_rows, engine.depth), np.uint8),
        entries,
        random.integers(0, 256, (engine.groups, engine.columns), np.uint8),
        random.integers(-128, 128, (engine.tables, 256), np.int8),
    )


class Placer:
    """Hands out lines of the bench's memory."""

    def __init__(self, engine: IntegerEngine, random: np.random.Generator) -> None:
        self.engine, self.random, self.line = engine, random, 0

    def place(self, rows: int, chunks: int, row: int | None = None) -> Tensor:
        pitch = chunks + int(self.random.integers(0, 2))
        row = int(self.random.integers(0, 2 * self.engine.line_rows)) if row is None else row
        tensor = Tensor(self.line, pitch, row)
        self.line += -(-(row + rows) // self.engine.line_rows) * pitch
        assert self.line <= LINES
        return tensor


def random_step(engine: IntegerEngine, mode: Mode, random: np.random.Generator, **fixed: object) -> Gemm:
    place = Placer(engine, random)
    four_bit = bool(fixed.pop("four_bit", engine.four_bit and mode < Mode.SCORE and random.random() < 0.3))
    m = int(random.integers(1, 2 * engine.rows + 2)) if mode < Mode.SCORE else int(random.integers(1, engine.rows + 1))
    n = int(random.integers(1, 5 * engine.columns))
    k = int(random.integers(1, 7 * engine.depth))
    m, n, k = (int(fixed.pop(name, value)) for name, value in (("m", m), ("n", n), ("k", k)))
    wide = mode is Mode.INT16
    tile = engine.columns * (1 + four_bit)
    out_chunks, tiles, chunks = -(-n * (1 + wide) // engine.depth), -(-n // tile), -(-k // engine.depth)
    row = None if mode < Mode.SCORE else int(random.integers(0, engine.line_rows - m + 1))
    a, out = place.place(m, chunks, row), place.place(m, out_chunks, row)
    w = place.place(tiles * engine.columns, chunks, int(random.integers(0, 3)) * engine.columns)
    aux, period = NOWHERE, 0
    if mode in (Mode.MULTIPLY, Mode.ROTARY) or (wide and random.random() < 0.7):
        period = int(random.integers(1, out_chunks + 1)) if mode is Mode.ROTARY else 0
        aux = place.place(m, period or out_chunks)
    return Gemm(
        a, w, out, m, n, k, mode,
        parameters=int(random.integers(0, 4)) * engine.lanes,
        table=int(random.integers(0, engine.tables + 1)) if mode is Mode.INT8 else 0,
        aux=aux,
        aux_period=period,
        multiplier=int(random.integers(1 << 15, 1 << 16)),
        shift={Mode.MULTIPLY: 21, Mode.ROTARY: 7, Mode.SCORE: 22, Mode.VALUE: 1}.get(mode, 0),
        limit=int(random.integers(-2, n + 4)) if mode is Mode.SCORE else 0,
        causal=bool(random.integers(0, 2)) and mode is Mode.SCORE,
        four_bit=four_bit,
        group=int(random.integers(0, 4)) if four_bit else 0,
        groups=int(random.integers(0, 8)) if four_bit else 0,
        **fixed,
    )  # fmt: skip


def check(name: str, steps: list[Gemm], memories: Memories, registers: list[int] | None = None) -> None:
    """Runs steps one after the other on the same memories; results and cycles are equal."""
    registers = registers or [0] * 8
    unit(name).fill(memories)
    for step in steps:
        golden(memories, step, registers)
        wanted = gemm_cycles(memories.engine, step, registers)
        cycles, _ = unit(name).run(step, registers, wanted + 100)
        found = unit(name).lines()
        assert np.array_equal(found, memories.lines), f"{step}: {np.argwhere(found != memories.lines)[:5].tolist()}"
        assert cycles == wanted, step


@pytest.mark.parametrize("mode", [Mode.INT8, Mode.INT16, Mode.MULTIPLY, Mode.ROTARY, Mode.SCORE])
@pytest.mark.parametrize("name", list(ENGINES))
def test_random_products(name: str, mode: Mode) -> None:
    random = np.random.default_rng(int(mode))
    for _ in range(20):
        check(name, [random_step(ENGINES[name], mode, random)], random_memories(ENGINES[name], random))


def attention(engine: IntegerEngine, random: np.random.Generator, registers: list[int]) -> list[Gemm]:
    """SCORE and the VALUE that reads it, sometimes of lengths that a register adds to."""
    place = Placer(engine, random)
    keys, head = int(random.integers(1, 5 * engine.columns)), int(random.integers(1, 3 * engine.columns))
    m = int(random.integers(1, engine.rows + 1))
    key_chunks, head_chunks = -(-keys // engine.depth), -(-head // engine.depth)
    row = int(random.integers(0, engine.line_rows - m + 1))
    query, scores, out = (place.place(m, chunks, row) for chunks in (head_chunks, key_chunks, head_chunks))
    key = place.place(-(-keys // engine.columns) * engine.columns, head_chunks, 0)
    value = place.place(-(-head // engine.columns) * engine.columns, key_chunks, 0)
    flag = bool(random.integers(0, 2))
    less = registers[3] if flag and keys > registers[3] else 0
    dynamic = {"register": 3, "add_n": True, "add_limit": True} if less else {}
    causal = bool(random.integers(0, 2))
    shift = int(random.integers(14, 24))
    score = Gemm(
        query, key, scores, m, keys - less, head, Mode.SCORE, multiplier=int(random.integers(1 << 15, 1 << 16)), shift=shift,
        limit=int(random.integers(-2, keys + 4)) - less, causal=causal, **dynamic,
    )  # fmt: skip
    dynamic = {"register": 3, "add_k": True} if less else {}
    gain = int(random.integers(0, 4))
    return [score, Gemm(scores, value, out, m, head, keys - less, Mode.VALUE, shift=gain, **dynamic)]


@pytest.mark.parametrize("name", list(ENGINES))
def test_random_attention(name: str) -> None:
    random = np.random.default_rng(9)
    registers = [0, 100, 200, 3, 0, 0, 0, 0]
    for _ in range(30):
        steps = attention(ENGINES[name], random, registers)
        check(name, steps, random_memories(ENGINES[name], random), registers)
