"""What moves data and runs programs (load, store, memories, sequencer, control) against the golden machine.

The compute units are stand-ins, so that a model is compiled in seconds; `test_engine_*` have the real ones.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.accelerator import simulate
from gossamer.accelerator.golden.machine import Machine
from gossamer.accelerator.isa import WORDS, assemble, verilog_header
from gossamer.accelerator.simulate import EngineError, Register, Run, Simulation
from gossamer.core.errors import SettingError
from gossamer.dataflow.bursts import program_bursts, step_bursts
from gossamer.dataflow.cycles.program import Cycles, schedule_cycles
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.mapping import AddressMap
from gossamer.dataflow.schedule import (
    Add,
    End,
    Fence,
    Gemm,
    Load,
    Mode,
    Norm,
    Pattern,
    Schedule,
    Space,
    Step,
    Store,
    Tensor,
)
from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.lint import lint

pytestmark = pytest.mark.skipif(
    not (tools.available("verilator") and tools.available("compiler")), reason="Verilator or a C++ compiler is missing"
)

STANDINS = sorted((Path(__file__).parent / "standins").glob("*.v"))
INSTRUCTION = 4 * WORDS
SMALL = {"bank_lines": 64, "instructions": 64, "parameters": 64, "groups": 16, "chunks": 16, "lanes": 2}
NARROW = {"lanes": 1, "norm_rows": 2}
ENGINES = {
    "bus 8": IntegerEngine(**SMALL, rows=8, columns=8, depth=8, bus_bytes=8),
    "bus 16, more rows": IntegerEngine(**SMALL, rows=16, columns=8, depth=4, bus_bytes=16),
    "bus 32, more than a line has rows": IntegerEngine(**SMALL, rows=4, columns=8, depth=8, norm_rows=4, bus_bytes=32),
}
ODD = {
    "bus 4, a whole line": IntegerEngine(
        **SMALL | NARROW | {"bank_lines": 256}, rows=2, columns=2, depth=2, bus_bytes=4
    ),
    "bus 128": IntegerEngine(**SMALL, rows=32, columns=16, depth=8, bus_bytes=128),
    "bus 64, a whole line, 16 banks": IntegerEngine(**SMALL, rows=4, columns=8, depth=8, bus_bytes=64, banks=16),
    "bus 8, two chunks": IntegerEngine(**SMALL, rows=32, columns=4, depth=4, bus_bytes=8, banks=4),
}
SOURCE, TARGET, DUMP, SIZE = 1 << 16, 4 << 16, 6 << 16, 10 << 16
"""Where random bytes lie in the outer memory, where stores go to, and the unified memory is written at the end."""


def simulation_sources() -> list[Path]:
    """The engine with stand-ins for its compute units."""
    return [path for path in simulate.sources() if path.name not in {"gs_gemm.v", "gs_norm.v", "gs_add.v"}] + STANDINS


@cache
def simulation(engine: IntegerEngine, **settings: float) -> Simulation:
    return Simulation(engine, rtl=simulation_sources(), **settings)


class StandIns(Machine):
    """The golden machine with the stand-ins' arithmetic."""

    def do(self, step: Step) -> None:
        lines = self.sram
        match step:
            case Gemm():
                for i in range(step.m):
                    lines[step.out.line + i] = lines[step.a.line + i] ^ lines[step.w.line + i]
            case Add():
                for i in range(step.m):
                    lines[step.out.line + i] = lines[step.a.line + i] ^ lines[step.b.line + i]
            case Norm():
                size = 8 * self.engine.lanes
                for i in range(step.m):
                    first = 8 * (step.parameters + i * self.engine.lanes)
                    entries = self.side[Space.PARAMETERS][first : first + size]
                    lines[step.out.line + i, ::2] = np.resize(entries, lines[0].shape)[::2]
            case Load() if step.chunks and step.count + self.registers[step.register] * step.add_count == 0:
                pass  # no rows
            case Store() if step.count == 0:
                pass
            case _:
                super().do(step)


def outer(engine: IntegerEngine, steps: Sequence[Step], seed: int = 0) -> np.ndarray:
    memory = np.random.default_rng(seed).integers(0, 256, SIZE).astype(np.uint8)
    program = np.frombuffer(assemble(steps), np.uint8)
    memory[: len(program)] = program
    return memory


def both(
    simulation: Simulation, steps: Sequence[Step], registers: Sequence[int] = (), seed: int = 0
) -> tuple[Run, Cycles, int]:
    """The counters, those of the cycle model, and how many bytes differ from the golden machine's outer memory."""
    engine = simulation.engine
    memory = outer(engine, steps, seed)
    golden = memory.copy()
    StandIns(engine, golden, registers).run(steps)
    run = simulation.run(memory, 0, len(steps), registers, limit_cycles=2_000_000)
    model = schedule_cycles(Schedule(engine, tuple(steps)), registers)
    return run, model, int((memory != golden).sum())


def everything(engine: IntegerEngine) -> tuple[Load, Store]:
    """A load of the whole unified memory, a store of it."""
    words = engine.sram_bytes // engine.bus_bytes
    return Load(SOURCE, Tensor(0, 0), words), Store(DUMP, Tensor(0, 0), engine.lines)


def random_transfers(engine: IntegerEngine, rng: np.random.Generator, registers: Sequence[int]) -> Iterable[Step]:
    """Loads into the lower half of the unified memory, stores from the upper half, side by side."""
    rows, bus, depth = engine.line_rows, engine.bus_bytes, engine.depth
    half = engine.lines // 2

    def below(limit: int) -> int:
        return int(rng.integers(limit))

    def tensor(first: int, width: int, height: int) -> Tensor:
        """A place for `height` rows of `width` chunks in the half that begins at line `first`."""
        pitch, row = width + below(4), below(rows)
        used = (row + height - 1) // rows * pitch + width
        return Tensor(first + below(max(half - used, 1)), pitch, row)

    for _ in range(12):
        register = below(4)
        value = (0, *registers)[register]
        address = SOURCE + bus * below(512)
        step = bus * below(8)
        if rng.random() < 0.5:
            pattern = Pattern(below(3))
            if pattern is Pattern.LINES:
                count_step = below(12)
                blocks = (value + rows) // rows
                count = below(300) if rng.random() < 0.7 else 0
                lines = -(-(count + blocks * count_step) * bus // engine.line_bytes)
                yield Load(address, Tensor(below(half - lines), 0), count, register=register, address_step=step,
                           count_step=count_step)  # fmt: skip
                continue
            add = bool(below(2))
            if pattern is Pattern.ROWS:
                chunks, count = 1 + below(9), below(20)
                to = tensor(0, chunks, max(count + value * add, 1))
            else:
                chunks = (1 + below(2 * max(1, rows // bus))) * bus // depth
                count = 1 + below(12)
                to = tensor(0, -(-(count + value * add) // depth), chunks * depth)
            pitch = -(-chunks * depth // bus) * bus + bus * below(3)
            yield Load(address, to, count, Space.SRAM, pattern, chunks, pitch, register, step, add_count=add)
        elif rng.random() < 0.4:
            yield Store(TARGET + bus * below(256), Tensor(half + below(half - 40), 0), below(40))
        else:
            chunks, count = 1 + below(8), below(24)
            chunk_pitch = depth * (1 + below(12))
            yield Store(TARGET + depth * below(64), tensor(half, chunks, max(count, 1)), count, Pattern.ROWS, chunks,
                        below(40), rows * chunk_pitch + depth * below(16), depth * (1 + below(30)), chunk_pitch,
                        register)  # fmt: skip


def random_program(engine: IntegerEngine, seed: int) -> tuple[list[Step], list[int]]:
    rng = np.random.default_rng(seed)
    registers = [int(value) for value in rng.integers(0, 20, 3)]
    load, store = everything(engine)
    return [load, Fence(), *random_transfers(engine, rng, registers), Fence(store=False), store, End()], registers


def check_transfers(engine: IntegerEngine, seeds: Iterable[int]) -> None:
    plain, stalled = simulation(engine), simulation(engine, stalls=0.4, seed=7)
    for seed in seeds:
        steps, registers = random_program(engine, seed)
        run, model, wrong = both(plain, steps, registers, seed)
        assert wrong == 0, seed
        assert (run.cycles, dict(run.busy)) == (model.total, dict(model.busy)), seed
        run, model, wrong = both(stalled, steps, registers, seed)
        assert wrong == 0, seed
        assert run.cycles > model.total


def test_header_is_what_the_instruction_set_says() -> None:
    assert (simulate.RTL / "gs_isa.vh").read_text(encoding="utf-8") == verilog_header()


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_transfer_is_exact_and_timed(engine: IntegerEngine) -> None:
    check_transfers(engine, range(8))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES.values(), *ODD.values()], ids=[*ENGINES, *ODD])
def test_many_transfers_are_exact_and_timed(engine: IntegerEngine) -> None:
    check_transfers(engine, range(100, 200))


@pytest.mark.parametrize("pattern", Pattern)
def test_each_pattern_alone(pattern: Pattern) -> None:
    """Rows of 64 bytes that cross 4 KB; a stand-alone check that each pattern moves what the others do not."""
    engine = ENGINES["bus 16, more rows"]
    rows = pattern is not Pattern.LINES
    chunks = 64 // engine.depth if rows else 0
    load = Load((1 << 16) + 4096 - 48, Tensor(0, 16), 40, Space.SRAM, pattern, chunks, 80 if rows else 0)
    before, after = everything(engine)
    run, model, wrong = both(simulation(engine), [before, load, Fence(), after, End()])
    assert wrong == 0
    assert run.cycles == model.total
    assert run.beats_read == before.count + (40 * 4 if rows else 40)
    assert run.beats_written == before.count


def test_compute_works_beside_transfers() -> None:
    engine = ENGINES["bus 8"]
    load, store = everything(engine)
    bank, words = engine.bank_lines, engine.line_bytes // engine.bus_bytes
    fill = Load(SOURCE, Tensor(5, 0), engine.parameters * 8 // engine.bus_bytes - 5, Space.PARAMETERS)
    steps = [
        load, fill, Fence(),
        Gemm(Tensor(0, 8), Tensor(bank, 8), Tensor(2 * bank, 8), m=40, n=8, k=8, mode=Mode.INT8),
        Load(SOURCE + 640, Tensor(3 * bank, 0), 30 * words), Store(TARGET, Tensor(4 * bank, 0), 30),
        Add(Tensor(5 * bank, 8), Tensor(6 * bank, 8), m=17, n=8, b=Tensor(7 * bank, 8)),
        Norm(Tensor(0, 8), Tensor(2 * bank + 44, 8), m=16, n=8, parameters=24, shift=0),
        Fence(), store, End(),
    ]  # fmt: skip
    memory = outer(engine, steps)
    golden = memory.copy()
    machine = StandIns(engine, golden)
    machine.side[Space.PARAMETERS][: 5 * engine.bus_bytes] = 0
    machine.run(steps)
    run = simulation(engine).run(memory, 0, len(steps))
    assert (memory != golden).sum() == 0
    assert run.busy["compute"] == 40 + 2 + 17 + 2 + 16 + 2


def test_programs_longer_than_the_ring_wrap() -> None:
    """Each half of the ring ends with the load of the other half, which has been run."""
    engine = ENGINES["bus 32, more than a line has rows"]
    load, store = everything(engine)
    rng = np.random.default_rng(1)
    half, pages = engine.instructions // 2, 7
    work: list[Step] = [load, Fence()]
    while len(work) < pages * (half - 2) - 3:
        work += [
            Load(SOURCE + 32 * int(rng.integers(999)), Tensor(int(rng.integers(500)), 0), int(rng.integers(9))),
            Fence(),
        ]
    work += [store, End()]
    words = half * INSTRUCTION // engine.bus_bytes
    steps: list[Step] = []
    for page in range(pages):
        steps += work[page * (half - 2) : (page + 1) * (half - 2)]
        refill = Load((page + 1) * half * INSTRUCTION, Tensor((page + 1) % 2 * words, 0), words, Space.INSTRUCTIONS)
        steps += [refill, Fence()] if page + 1 < pages else []
    memory = outer(engine, steps)
    golden = memory.copy()
    machine = StandIns(engine, golden)
    machine.boot(0, half)
    for settings in ({}, {"stalls": 0.4, "seed": 7}):
        given = memory.copy()
        simulation(engine, **settings).run(given, 0, half)
        assert (given != golden).sum() == 0


@pytest.mark.parametrize(
    ("meeting", "ports"),
    [
        ([Gemm(Tensor(0, 8), Tensor(9, 8), Tensor(64, 8), m=4, n=8, k=8, mode=Mode.INT8)], "a and w"),
        ([Gemm(Tensor(0, 8), Tensor(64, 8), Tensor(9, 8), m=4, n=8, k=8, mode=Mode.INT8)], "a and out"),
        ([Add(Tensor(0, 8), Tensor(99, 8), m=4, n=8, b=Tensor(9, 8))], "a and x"),
        ([Store(TARGET, Tensor(4, 0), 60), Load(SOURCE, Tensor(0, 0), 100)], "store and load"),
    ],
)
def test_two_ports_in_one_bank_are_an_error(meeting: list[Step], ports: str) -> None:
    engine = ENGINES["bus 8"]
    steps = [*meeting, End()]
    with pytest.raises(EngineError, match=f"ports {ports} met in one bank"):
        simulation(engine).run(outer(engine, steps), 0, len(steps))
    assert simulation(engine).run(outer(engine, [End()]), 0, 1).cycles == 2  # the next program starts without it


def test_lines_that_do_not_exist_are_an_error() -> None:
    engine = ENGINES["bus 8"]
    steps = [Load(SOURCE, Tensor(engine.lines - 1, 0), 9), End()]
    with pytest.raises(EngineError, match=f"port load used a line that does not exist: there are {engine.lines}"):
        simulation(engine).run(outer(engine, steps), 0, len(steps))


def test_an_unknown_opcode_ends_the_program() -> None:
    engine = ENGINES["bus 8"]
    memory = outer(engine, [Load(SOURCE, Tensor(0, 0), 9), End()])
    memory[INSTRUCTION] = 77
    with pytest.raises(EngineError, match="opcode 77 is unknown"):
        simulation(engine).run(memory, 0, 2)


def test_a_program_that_does_not_end_is_given_up() -> None:
    engine = ENGINES["bus 8"]
    own = Simulation(engine, rtl=simulation_sources(), seed=1)
    with pytest.raises(EngineError, match="has not ended after 50 cycles"):
        own.run(outer(engine, [everything(engine)[0], End()]), 0, 2, limit_cycles=50)


def test_reading_past_the_outer_memory_is_an_error() -> None:
    engine = ENGINES["bus 8"]
    own = Simulation(engine, rtl=simulation_sources())
    steps = [Load(SIZE - 16, Tensor(0, 0), 3), End()]
    with pytest.raises(EngineError, match=f"AR: a burst of 1 words at {SIZE} passes the end of the outer memory"):
        own.run(outer(engine, steps), 0, len(steps))
    with pytest.raises(EngineError, match="passes the end"):
        own.run(outer(engine, [End()]), 0, 1)


@pytest.mark.slow
def test_broken_bus_rules_are_found(tmp_path: Path) -> None:
    """The check itself: bursts that do not mind 4 KB."""
    broken = tmp_path / "gs_bursts.v"
    text = (simulate.RTL / "gs_bursts.v").read_text(encoding="utf-8")
    broken.write_text(text.replace("BLOCK = BURST - BUS > 8 ? 8 : BURST - BUS", "BLOCK = 8"), encoding="utf-8")
    engine = ENGINES["bus 32, more than a line has rows"]
    rtl = [path for path in simulation_sources() if path.name != broken.name]
    steps = [Load(SOURCE + 4096 - 64, Tensor(0, 0), 64), End()]
    with pytest.raises(EngineError, match="AR: a burst of 64 words at 69568 crosses 4 KB"):
        Simulation(engine, rtl=[*rtl, broken]).run(outer(engine, steps), 0, len(steps))


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("bus 8", {}),
        ("bus 16, more rows", {"stalls": 0.4}),
        (
            "bus 32, more than a line has rows",
            {"mapping": AddressMap(burst=7, column=3, bank=2, bank_at=7, column_at=9)},
        ),
    ],
)
def test_bursts_are_those_of_the_model(engine: str, settings: dict[str, Any]) -> None:
    """Every request on the AXI4 port, channel by channel."""
    shape = ENGINES[engine]
    own = Simulation(shape, rtl=simulation_sources(), **settings)
    mapping = settings.get("mapping", AddressMap())
    for seed in range(6):
        steps, registers = random_program(shape, seed)
        memory = np.zeros(SIZE, np.uint8)
        memory[mapping.apply(np.arange(SIZE))] = outer(shape, steps)
        seen = own.run(memory, 0, len(steps), registers, record=True).bursts
        model = program_bursts(Schedule(shape, tuple(steps)), registers, mapping)
        fetch = step_bursts(
            shape, Load(0, Tensor(0, 0), INSTRUCTION * len(steps) // shape.bus_bytes), most=1 << mapping.burst
        )
        assert len(model) > 0
        for write in (False, True):
            address, words = model.address[model.write == write], model.words[model.write == write]
            if not write:
                address = np.concatenate([mapping.apply(fetch[0]), address])
                words = np.concatenate([fetch[1], words])
            assert (seen.address[seen.write == write] == address).all()
            assert (seen.words[seen.write == write] == words).all()


@pytest.mark.slow
def test_mapped_addresses() -> None:
    """Column by column, bank by bank, in a memory whose controller has the bank below the column."""
    mapping = AddressMap(burst=7, column=3, bank=2, bank_at=7, column_at=9)
    bursts = mapping.apply(np.arange(1 << 8) << 7) >> 7
    assert list(bursts[:10]) == [0, 4, 8, 12, 16, 20, 24, 28, 1, 5]
    assert sorted(bursts) == list(range(1 << 8))
    engine = ENGINES["bus 32, more than a line has rows"]
    steps, registers = random_program(engine, 3)
    memory = outer(engine, steps)
    golden = memory.copy()
    StandIns(engine, golden, registers).run(steps)
    places = mapping.apply(np.arange(SIZE))
    given = np.zeros(SIZE, np.uint8)
    given[places] = memory
    Simulation(engine, rtl=simulation_sources(), mapping=mapping).run(given, 0, len(steps), registers)
    assert (given[places] != golden).sum() == 0


@pytest.mark.parametrize(
    ("digits", "message"),
    [
        ({"burst": 13}, "burst is 13 bits; 3 … 12"),
        ({"burst": 6, "column": 4, "column_at": 5}, "column of 4 bits at bit 5"),
        ({"burst": 6, "column": 4, "bank": 2, "bank_at": 8}, "bank of 2 bits at bit 8: it must lie apart"),
        ({"burst": 6, "column": 4, "row_at": 12}, "row of 22 bits at bit 12"),
    ],
)
def test_wrong_maps_are_refused(digits: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AddressMap(**digits)


def test_control_registers() -> None:
    engine = ENGINES["bus 8"]
    own = simulation(engine)
    memory = outer(engine, [End()])
    own.run(memory, 0, 1, registers=[1, 2, -3, 4, 5, 6, 7])
    values = [own.read(Register.REGISTERS + 4 * index) for index in range(8)]
    assert values == [0, 1, 2, (1 << 32) - 3, 4, 5, 6, 7]
    assert own.read(Register.PROGRAM_COUNT) == 1
    assert own.read(Register.STATUS) == 2
    with pytest.raises(EngineError, match="register 4 refuses to be written"):
        Simulation(engine, rtl=simulation_sources())._write(Register.STATUS, 1)


def test_cycles_of_one_step_after_another() -> None:
    """A transfer pays the latency once, however many bursts it has: words flow without a gap."""
    engine = ENGINES["bus 8"]
    counts = [250, 256, 257, 1000, 2000]
    totals = [both(simulation(engine), [Load(SOURCE + 8, Tensor(0, 0), count), End()])[0].cycles for count in counts]
    assert [b - a for a, b in pairwise(totals)] == [b - a for a, b in pairwise(counts)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "0 instructions; the engine starts with 1 … 64"),
        ({"count": 65}, "65 instructions"),
        ({"program": 4}, "a program of 1 instructions at 4: a multiple of 8"),
        ({"program": SIZE - 8}, "inside the"),
        ({"registers": [0] * 8}, "8 registers given; a program has 7"),
        ({"registers": [1 << 32]}, "register value 4294967296"),
        ({"memory": np.zeros(SIZE, np.int8)}, "uint8"),
        ({"memory": np.zeros(2 * SIZE, np.uint8)[::2]}, "contiguous"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    engine = ENGINES["bus 8"]
    given = {"memory": outer(engine, [End()]), "program": 0, "count": 1} | arguments
    with pytest.raises(SettingError, match=message):
        simulation(engine).run(**given)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="latencies are 0 and 20"):
        Simulation(ENGINES["bus 8"], read_latency=0)
    with pytest.raises(SettingError, match=r"stalls is 1\.0"):
        Simulation(ENGINES["bus 8"], stalls=1.0)


@pytest.mark.parametrize(
    ("top", "numbers"),
    [
        ("gs_load", ("ROWS", "COLUMNS", "DEPTH", "BUS_BYTES")),
        ("gs_store", ("ROWS", "COLUMNS", "DEPTH", "BUS_BYTES")),
        ("gs_sequencer", ("BUS_BYTES", "INSTRUCTIONS")),
        ("gs_parameters", ("LANES", "BUS_BYTES", "PARAMETERS")),
        ("gs_control", ()),
    ],
)
def test_lint(top: str, numbers: Sequence[str]) -> None:
    engine = ENGINES["bus 16, more rows"]
    values = simulate.parameters(engine)
    names = ["gs_load", "gs_bursts"] if top == "gs_load" else [top]
    names += ["gs_side", "gs_dual"] if top in ("gs_sequencer", "gs_parameters") else []
    files = [simulate.RTL / f"{name}.v" for name in names] + [simulate.RTL / "gs_isa.vh"]
    assert lint(Design(files, top, {name: values[name] for name in numbers})) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES.values(), *ODD.values()], ids=[*ENGINES, *ODD])
def test_lint_of_the_whole_engine(engine: IntegerEngine) -> None:
    assert lint(Design(simulate.sources(), "gs_top", simulate.parameters(engine)), seconds=600) == []


@pytest.mark.slow
def test_engine_runs_a_product() -> None:
    """The real compute units in the whole engine: load, product, norm, add, store; bytes and cycles."""
    engine = IntegerEngine(bank_lines=64, instructions=64, parameters=64, groups=16, chunks=16, bus_bytes=16)
    bank, rng = engine.bank_lines, np.random.default_rng(0)
    entries = np.zeros((64, 8), np.uint8)
    entries[:, :4] = rng.integers(-1000, 1000, 64).astype("<i4").view(np.uint8).reshape(64, 4)
    entries[:, 4:6] = np.full(64, 40000, "<u2").view(np.uint8).reshape(64, 2)
    entries[:, 6] = 22
    steps = [
        Load(TARGET, Tensor(0, 0), 32, Space.PARAMETERS),
        Load(SOURCE, Tensor(0, 8), 4 * 16), Load(SOURCE + 4096, Tensor(bank, 8), 4 * 24), Fence(),
        Gemm(Tensor(0, 8), Tensor(bank, 8), Tensor(2 * bank, 6), m=16, n=24, k=64, mode=Mode.INT16), Fence(),
        Norm(Tensor(2 * bank, 6), Tensor(3 * bank, 6), m=16, n=24, parameters=0, shift=14, wide=True), Fence(),
        Add(Tensor(2 * bank, 6), Tensor(4 * bank, 6), m=16, n=24, b=Tensor(3 * bank, 6)), Fence(),
        Store(DUMP, Tensor(2 * bank, 0), 12), Store(DUMP + 4096, Tensor(3 * bank, 0), 12),
        Store(DUMP + 8192, Tensor(4 * bank, 0), 12), End(),
    ]  # fmt: skip
    memory = outer(engine, steps)
    memory[TARGET : TARGET + 512] = entries.reshape(-1)
    golden = memory.copy()
    Machine(engine, golden).run(steps)
    run = Simulation(engine).run(memory, 0, len(steps))
    assert (memory != golden).sum() == 0
    model = schedule_cycles(Schedule(engine, tuple(steps)))
    assert (run.cycles, dict(run.busy)) == (model.total, dict(model.busy))
