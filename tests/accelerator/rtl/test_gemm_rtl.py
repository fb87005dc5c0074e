"""gs_gemm against golden arithmetic, bit for bit, and against the cycle model."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from gemm_unit import Unit

from gossamer.accelerator.golden.machine import Machine
from gossamer.dataflow.cycles.gemm import gemm_cycles
from gossamer.dataflow.engine import SCORE_TILES, IntegerEngine
from gossamer.dataflow.schedule import NOWHERE, Gemm, Mode, Space, Tensor

SMALL = {"bank_lines": 64, "parameters": 256, "groups": 64, "tables": 2, "chunks": 64}
ENGINES = {
    "square": IntegerEngine(**SMALL),
    "wide": IntegerEngine(rows=4, columns=8, depth=4, lanes=1, bus_bytes=4, **SMALL),
    "tall": IntegerEngine(rows=8, columns=4, depth=4, lanes=2, norm_rows=4, bus_bytes=32, four_bit=False, **SMALL),
}

LARGE = {
    "16x8x8": IntegerEngine(rows=16, columns=8, depth=8, lanes=2, bus_bytes=32, four_bit=False, **SMALL),
    "32x16x8": IntegerEngine(rows=32, columns=16, depth=8, lanes=4, bus_bytes=16, **SMALL),
    "8x16x16": IntegerEngine(rows=8, columns=16, depth=16, lanes=8, bus_bytes=64, **SMALL),
    "4x8x8": IntegerEngine(rows=4, columns=8, depth=8, lanes=4, bus_bytes=8, **SMALL),
}
NO_REGISTERS = [0] * 8


@cache
def unit(name: str) -> Unit:
    return Unit({**ENGINES, **LARGE}[name])


def random_machine(engine: IntegerEngine, random: np.random.Generator, registers: list[int]) -> Machine:
    """Memories of random bytes; parameters that bring most sums into range, and some that do not."""
    machine = Machine(engine, np.zeros(0, np.uint8), registers[1:])
    for memory in (machine.sram, machine.side[Space.GROUPS], machine.side[Space.TABLES]):
        memory[...] = random.integers(0, 256, memory.shape, np.uint8)
    bias = random.integers(-(1 << 13), 1 << 13, engine.parameters)
    shift = random.integers(18, 32, engine.parameters)
    extreme = random.random(engine.parameters) < 0.05
    bias[extreme] = random.choice([-(1 << 31), (1 << 31) - 1], extreme.sum())
    shift[extreme] = random.choice([0, 1, 47], extreme.sum())
    entries = machine.side[Space.PARAMETERS].reshape(-1, 8)
    entries[:, :4] = bias.astype("<i4")[:, None].view(np.uint8)
    entries[:, 4:6] = random.integers(0, 1 << 16, engine.parameters).astype("<u2")[:, None].view(np.uint8)
    entries[:, 6] = shift
    return machine


class Placer:
    """Hands out lines of the bench's memory."""

    def __init__(self, engine: IntegerEngine, random: np.random.Generator) -> None:
        self.engine, self.random, self.line = engine, random, 0

    def place(self, rows: int, chunks: int, row: int | None = None) -> Tensor:
        pitch = chunks + int(self.random.integers(0, 2))
        row = int(self.random.integers(0, 2 * self.engine.line_rows)) if row is None else row
        tensor = Tensor(self.line, pitch, row)
        self.line += -(-(row + rows) // self.engine.line_rows) * pitch
        assert self.line <= self.engine.lines
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
        group=int(random.integers(1, 4)) if four_bit else 0,
        groups=int(random.integers(0, 8)) if four_bit else 0,
        **fixed,
    )  # fmt: skip


def check(name: str, steps: list[Gemm], random: np.random.Generator, registers: list[int] = NO_REGISTERS) -> None:
    """Runs steps one after the other on the same memories; results and cycles are equal."""
    machine = random_machine(unit(name).engine, random, registers)
    unit(name).fill(machine)
    for step in steps:
        machine.do(step)
        wanted = gemm_cycles(machine.engine, step, registers)
        cycles, _ = unit(name).run(step, registers, wanted + 100)
        found = unit(name).lines()
        assert np.array_equal(found, machine.sram), f"{step}: {np.argwhere(found != machine.sram)[:5].tolist()}"
        assert cycles == wanted, step


@pytest.mark.parametrize("mode", [Mode.INT8, Mode.INT16, Mode.MULTIPLY, Mode.ROTARY, Mode.SCORE])
@pytest.mark.parametrize("name", list(ENGINES))
def test_random_products(name: str, mode: Mode) -> None:
    random = np.random.default_rng(int(mode))
    for _ in range(20):
        check(name, [random_step(ENGINES[name], mode, random)], random)


def attention(engine: IntegerEngine, random: np.random.Generator, registers: list[int]) -> list[Gemm]:
    """SCORE and the VALUE that reads it, sometimes of lengths that a register adds to."""
    place = Placer(engine, random)
    keys, head = int(random.integers(1, 5 * engine.columns)), int(random.integers(1, 3 * engine.columns))
    causal = bool(random.integers(0, 2))
    key_chunks, head_chunks = -(-keys // engine.depth), -(-head // engine.depth)
    tiles = 1 if causal else min(int(random.integers(1, 5)), engine.chunks // key_chunks)
    m = int(random.integers(1, tiles * engine.rows + 1))
    if m > engine.rows:
        row = engine.rows * int(random.integers(0, 2 * engine.line_rows // engine.rows))
    else:
        row = int(random.integers(0, engine.line_rows - m + 1))
    query, scores, out = (place.place(m, chunks, row) for chunks in (head_chunks, key_chunks, head_chunks))
    key = place.place(-(-keys // engine.columns) * engine.columns, head_chunks, 0)
    value = place.place(-(-head // engine.columns) * engine.columns, key_chunks, 0)
    flag = bool(random.integers(0, 2))
    less = registers[3] if flag and keys > registers[3] else 0
    dynamic = {"register": 3, "add_n": True, "add_limit": True} if less else {}
    shift = int(random.integers(14, 24))
    score = Gemm(
        query, key, scores, m, keys - less, head, Mode.SCORE,
        multiplier=int(random.integers(1 << 15, 1 << 16)), shift=shift,
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
        check(name, steps, random, registers)


def test_as_many_rows_of_scores_as_the_engine_takes() -> None:
    """32 row tiles of 2 chunks fill the memory of octaves; columns tile by tile, some of them not valid."""
    engine, random = ENGINES["wide"], np.random.default_rng(4)
    m = SCORE_TILES * engine.rows
    for keys, head in ((8, 4), (7, 24), (1, 1)):
        place = Placer(engine, random)
        query, key = place.place(m, -(-head // 4), 0), place.place(8, -(-head // 4), 0)
        scores, out = place.place(m, -(-keys // 4), 0), place.place(m, -(-head // 4), 0)
        value = place.place(-(-head // 8) * 8, -(-keys // 4), 0)
        score = Gemm(query, key, scores, m, keys, head, Mode.SCORE, multiplier=40000, shift=20, limit=keys)
        steps = [score, Gemm(scores, value, out, m, head, keys, Mode.VALUE, shift=1)]
        check("wide", steps, random)


def test_a_product_with_enough_chunks_computes_all_the_time() -> None:
    """K / depth chunks of a tile hide the drain of the one before it."""
    engine = ENGINES["square"]
    place = Placer(engine, np.random.default_rng(0))
    a, w, out = place.place(24, 8, 0), place.place(64, 8, 0), place.place(24, 8, 0)
    step = Gemm(a, w, out, 24, 64, 64, Mode.INT8)
    cycles, chunks = unit("square").run(step, NO_REGISTERS, 1000)
    assert cycles == gemm_cycles(engine, step)
    assert chunks == 3 * 8 * 8
    assert chunks / cycles > 0.9


def test_registers_lengthen_a_product() -> None:
    random = np.random.default_rng(1)
    registers = [0, 0, 0, 0, 0, 21, 0, 0]
    for _ in range(10):
        step = random_step(ENGINES["square"], Mode.INT8, random, n=40, k=50, four_bit=False)
        step = replace(step, n=19, k=29, register=5, add_n=True, add_k=True)
        check("square", [step], random, registers)


@pytest.mark.parametrize("name", list(ENGINES))
def test_steps_follow_each_other_at_once(name: str) -> None:
    """Nothing of a step is left that the next one, started in the cycle in which it rests, could take for its own."""
    random = np.random.default_rng(2)
    for _ in range(5):
        machine = random_machine(ENGINES[name], random, NO_REGISTERS)
        unit(name).fill(machine)
        for mode in random.integers(0, 5, 8):
            step = random_step(ENGINES[name], Mode(mode), random, n=20, k=9, m=3)
            machine.do(step)
            wanted = gemm_cycles(machine.engine, step)
            assert unit(name).run(step, NO_REGISTERS, wanted)[0] == wanted  # still busy in the last of them
        assert np.array_equal(unit(name).lines(), machine.sram)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ENGINES, *LARGE])
def test_many_random_steps(name: str) -> None:
    random = np.random.default_rng(11)
    registers = [0, 100, 200, 3, 0, 0, 0, 0]
    engine = {**ENGINES, **LARGE}[name]
    for index in range(400):
        check(name, [random_step(engine, Mode(index % 5), random)], random, registers)
        check(name, attention(engine, random, registers), random, registers)
