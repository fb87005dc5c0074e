"""Norm and add units, and the inverse root, in RTL: bit for bit the golden model, in the cycles that the model says."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer import accelerator
from gossamer.accelerator.golden.arithmetic import inverse_root
from gossamer.accelerator.golden.machine import Machine
from gossamer.accelerator.isa import encode, verilog_header
from gossamer.accelerator.rtl_tables import root_seeds
from gossamer.dataflow.cycles.vector import add_cycles, norm_cycles
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Add, Norm, Space, Tensor
from gossamer.eda.design import Design
from gossamer.eda.lint import lint
from gossamer.eda.model import Model

RTL = Path(next(iter(accelerator.__path__))) / "rtl"
NAMES = (
    "norm",
    "add",
    "rows",
    "slices",
    "take",
    "put",
    "shift",
    "moments",
    "variance",
    "normalise",
    "product",
    "root",
    "root_seeds",
)
SOURCES = [*(RTL / f"gs_{name}.v" for name in NAMES), RTL / "gs_isa.vh"]
SMALL = {"banks": 4, "bank_lines": 64, "parameters": 1024, "chunks": 16, "instructions": 64}


def engine(rows: int, columns: int, depth: int, lanes: int, norm_rows: int) -> IntegerEngine:
    shape = {"rows": rows, "columns": columns, "depth": depth, "lanes": lanes, "norm_rows": norm_rows}
    return IntegerEngine(**shape, bus_bytes=max(depth, 4), **SMALL)


FEW_LINES = engine(4, 8, 4, 2, 4)
WIDE = engine(16, 8, 8, 2, 4)
MORE = [engine(8, 4, 4, 1, 1), engine(8, 8, 8, 4, 8), engine(4, 16, 8, 1, 16), engine(32, 16, 16, 8, 8)]


def parameters(shape: IntegerEngine) -> dict[str, int | str]:
    return {name.upper(): getattr(shape, name) for name in ("rows", "columns", "depth", "lanes", "norm_rows")}


@cache
def bench(shape: IntegerEngine) -> Model:
    design = Design([*SOURCES, Path(__file__).parent / "vector_bench.v"], "vector_bench", parameters(shape))
    model = Model(design, clock="clk_i", seed=1, optimise=1)
    model.set("rst_i", 1)
    model.clock(3)
    model.set("rst_i", 0)
    return model


def ran(
    shape: IntegerEngine, step: Norm | Add, sram: NDArray[np.uint8], entries: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], int]:
    """The lines after a step, and the cycles it took."""
    model, lines = bench(shape), np.arange(shape.lines)
    words = sram.reshape(shape.lines, -1).view(np.uint32 if shape.line_bytes > 8 else np.uint64)
    words = words if shape.line_bytes > 8 else words[:, 0]
    model.run({"line_en_i": np.ones_like(lines), "line_i": lines, "line_data_i": words}, [])
    model.set("line_en_i", 0)
    values = entries.view(np.uint64)
    model.run({"entry_en_i": np.ones_like(values), "entry_i": np.arange(len(values)), "entry_data_i": values}, [])
    model.set("entry_en_i", 0)
    model.set("add_i", int(isinstance(step, Add)))
    model.set("instruction_i", int.from_bytes(encode(step).tobytes(), "little"))
    model.set("start_i", 1)
    model.clock()
    model.set("start_i", 0)
    model.clock(20 + (norm_cycles(shape, step) if isinstance(step, Norm) else add_cycles(shape, step)))
    assert not model.get("busy_o")
    assert not model.get("late_o")
    after = model.run({"line_i": lines}, ["line_data_o"])["line_data_o"]
    return np.ascontiguousarray(after).view(np.uint8).reshape(sram.shape), model.get("cycles_o")


def same(shape: IntegerEngine, step: Norm | Add, sram: NDArray[np.uint8], entries: NDArray[np.uint8]) -> None:
    """One step on the RTL and on the golden machine: the same memories, and the cycles of the cycle model."""
    machine = Machine(shape, np.zeros(0, np.uint8))
    machine.sram[:] = sram
    machine.side[Space.PARAMETERS][: len(entries)] = entries
    machine.do(step)
    after, cycles = ran(shape, step, sram, entries)
    np.testing.assert_array_equal(after, machine.sram, err_msg=str(step))
    assert cycles == (norm_cycles(shape, step) if isinstance(step, Norm) else add_cycles(shape, step)), step


def chunks(shape: IntegerEngine, n: int, wide: bool) -> int:
    return -(-n * (2 if wide else 1) // shape.depth)


def rows_of(shape: IntegerEngine, random: np.random.Generator, m: int, n: int) -> NDArray[np.int16]:
    """Rows of all sorts: as models have them, and the extremes."""
    rows = random.normal(0, 10.0 ** random.uniform(0, 4, (m, 1)), (m, n)) + random.normal(0, 300, (m, 1))
    rows = np.clip(np.rint(rows), -32768, 32767).astype(np.int16)
    kinds = random.integers(0, 12, m)
    rows[kinds == 0] = random.integers(-32768, 32768)
    rows[kinds == 1] = 0
    rows[kinds == 2] = np.where(np.arange(n) % 2, 32767, -32768)
    rows[kinds == 3] = -32768
    rows[kinds == 4] = random.integers(-32768, 32768, n)
    outlier = np.zeros(n, np.int16)
    outlier[random.integers(n)] = 1
    rows[kinds == 5] = outlier
    return rows


def placed(shape: IntegerEngine, random: np.random.Generator, m: int, n: int, base: int, wide: bool) -> Tensor:
    """A place for rows of n elements from line `base` on, the pitch at times more than needed."""
    return Tensor(base, chunks(shape, n, wide) + int(random.integers(0, 3)), int(random.integers(0, shape.line_rows)))


def filled(
    shape: IntegerEngine, random: np.random.Generator, *tensors: tuple[Tensor, NDArray[np.int16]]
) -> NDArray[np.uint8]:
    """Memory of random bytes with these tensors in it."""
    machine = Machine(shape, np.zeros(0, np.uint8))
    machine.sram[:] = random.integers(0, 256, machine.sram.shape)
    for place, rows in tensors:
        m, n = rows.shape
        width = chunks(shape, n, True)
        data = machine.read(place, m, width).view("<i2").copy()
        data[:, :n] = rows
        machine.write(place, data.view(np.uint8))
    return machine.sram


def most_rows(shape: IntegerEngine, n: int, lines: int) -> int:
    """Rows of 16 bits that surely fit so many lines, first row and pitch as `placed` may choose them."""
    return max((lines // (chunks(shape, n, True) + 2) - 1) * shape.line_rows, 1)


def a_norm(shape: IntegerEngine, random: np.random.Generator) -> None:
    n = int(random.integers(8, min(200, 30 * shape.depth) + 1))
    m = int(random.integers(1, min(most_rows(shape, n, shape.lines // 2), 2 * shape.line_rows) + 1))
    wide, centred = random.integers(0, 2, 2).astype(bool).tolist()
    first = int(random.integers(0, 20)) * shape.lanes
    entries = random.integers(0, 256, (shape.parameters, 8)).astype(np.uint8)
    if random.integers(2):  # gains and offsets as models have them
        entries[:, :4] = random.integers(-(1 << 20), 1 << 20, shape.parameters).astype("<i4")[:, None].view(np.uint8)
        entries[:, 4:6] = random.integers(0, 1 << 14, shape.parameters).astype("<i2")[:, None].view(np.uint8)
    a, out = placed(shape, random, m, n, 0, True), placed(shape, random, m, n, shape.lines // 2, wide)
    epsilon = int(random.choice([0, 1, random.integers(1 << 20), random.integers(1 << 48)]))
    step = Norm(a, out, m, n, first, int(random.integers(0, 38)), epsilon, centred, wide)
    same(shape, step, filled(shape, random, (a, rows_of(shape, random, m, n))), entries.reshape(-1))


def an_add(shape: IntegerEngine, random: np.random.Generator) -> None:
    n = int(random.integers(1, min(130, 20 * shape.depth) + 1))
    third = shape.lines // 3
    m = int(random.integers(1, min(most_rows(shape, n, third), 2 * shape.line_rows) + 1))
    wide, has_b = random.integers(0, 2, 2).astype(bool).tolist()
    a, b = (placed(shape, random, m, n, base, True) for base in (0, third))
    out = placed(shape, random, m, n, 2 * third, wide)
    multiplier, shift = int(random.integers(0, 1 << 16)), int(random.integers(0, 40))
    step = Add(a, out, m, n, b, has_b, wide, multiplier, shift)
    rows = [rows_of(shape, random, m, n) for _ in range(2)]
    same(shape, step, filled(shape, random, (a, rows[0]), (b, rows[1])), np.zeros(8 * shape.parameters, np.uint8))


@pytest.mark.parametrize("shape", [FEW_LINES, WIDE, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)])
def test_norms_and_adds_equal_the_golden_machine_to_bit_and_cycle(shape: IntegerEngine) -> None:
    random = np.random.default_rng(7)
    for _ in range(60):
        a_norm(shape, random)
        an_add(shape, random)


def test_empty_steps_end_at_once() -> None:
    sram = np.random.default_rng(0).integers(0, 256, (FEW_LINES.lines, FEW_LINES.line_rows, FEW_LINES.depth), np.uint8)
    entries = np.zeros(8 * FEW_LINES.parameters, np.uint8)
    for step in (Norm(Tensor(0, 4), Tensor(99, 4), 0, 8, 0, 0), Add(Tensor(0, 4), Tensor(99, 4), 0, 8, Tensor(50, 4))):
        after, cycles = ran(FEW_LINES, step, sram, entries)
        np.testing.assert_array_equal(after, sram)
        assert cycles == 1


def test_long_rows_of_extremes() -> None:
    """The sums' highest bits."""
    shape = WIDE
    random = np.random.default_rng(3)
    n = 4 * 120 + 1
    rows = np.full((shape.line_rows, n), 32767, np.int16)
    rows[1::2, ::2] = -32768
    rows[::3] = random.integers(-32768, 32768, n)
    entries = np.zeros((shape.parameters, 8), np.uint8)
    entries[:, 4:6] = np.array([1 << 14], "<i2").view(np.uint8)
    a, out = Tensor(0, 128, 0), Tensor(128, 128, 0)
    for wide in (True, False):
        step = Norm(a, out, shape.line_rows, n, 0, 14 if wide else 20, 5, True, wide)
        same(shape, step, filled(shape, random, (a, rows)), entries.reshape(-1))


def test_halves_are_rounded_up() -> None:
    """Rows with elements whose normalised value, as computed, lies in the middle of two steps, to the last bit."""
    shape, n = WIDE, 64
    rows = np.random.default_rng(5).normal(0, 5000, (40_000, n)).round().clip(-32768, 32767).astype(np.int64)
    total = rows.sum(1)
    root, half = inverse_root(n * (rows * rows).sum(1) - total * total)
    z = (n * rows - total[:, None]) >> (2 + half)[:, None]
    middle = (np.abs(z) < 1 << 21) & ((z * root[:, None]) % (1 << 17) == 1 << 16)
    found = rows[middle.any(1)][: shape.line_rows]
    assert len(found) == shape.line_rows
    entries = np.zeros((shape.parameters, 8), np.uint8)
    entries[:, 4] = 1
    a, step = Tensor(0, 32), Norm(Tensor(0, 32), Tensor(128, 32), len(found), n, 0, 0, wide=True)
    same(shape, step, filled(shape, np.random.default_rng(0), (a, found.astype(np.int16))), entries.reshape(-1))


def test_the_inverse_root_equals_the_golden_one() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 61, 120_000)
    near = (np.int64(1) << np.arange(61))[:, None] + np.arange(-3, 4)
    low = random.integers(0, 1 << 60, len(bits)) >> (60 - bits)
    every = np.arange(1 << 14, 1 << 16)  # the root hangs on the leading 16 bits alone
    values = np.concatenate([np.clip(near.reshape(-1), 0, None), np.arange(1 << 14), every, every << 44, low])
    padded = np.concatenate([values, np.zeros(6, np.int64)])
    enabled = np.arange(len(padded)) < len(values)
    out = bench(WIDE).run(
        {"root_en_i": enabled, "root_variance_i": padded}, ["root_valid_o", "root_o", "root_places_o"]
    )
    roots, half = inverse_root(values)
    assert out["root_valid_o"][6:].all()
    np.testing.assert_array_equal(out["root_o"][6:], roots)
    np.testing.assert_array_equal(out["root_places_o"][6:].astype(np.int64) - 15, half)


def test_generated_files_are_what_their_writers_write() -> None:
    assert (RTL / "gs_root_seeds.v").read_text(encoding="utf-8") == root_seeds()
    assert (RTL / "gs_isa.vh").read_text(encoding="utf-8") == verilog_header()


@pytest.mark.parametrize(
    "shape", [FEW_LINES, WIDE, *(pytest.param(each, marks=pytest.mark.slow) for each in [*MORE, engine(4, 4, 2, 1, 2)])]
)
def test_lint_finds_nothing(shape: IntegerEngine) -> None:
    for top in ("gs_norm", "gs_add"):
        assert lint(Design(SOURCES, top, parameters(shape))) == []
