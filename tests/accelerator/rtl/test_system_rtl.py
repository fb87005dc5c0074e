"""Whole models on the whole engine: RTL against the golden machine, byte by byte of the outer memory, cycle by
cycle."""

import numpy as np
import pytest
from tests.accelerator.program.random_stacks import Maker, bert, crossed, llama, vit

from gossamer.accelerator.build import bench_program
from gossamer.accelerator.golden.machine import Machine
from gossamer.accelerator.program import OuterMemory, Program, images, lower_decode, lower_prefill
from gossamer.accelerator.simulate import EngineError, Simulation
from gossamer.dataflow.cycles.program import schedule_cycles
from gossamer.dataflow.engine import IntegerEngine
from gossamer.eda import tools

pytestmark = pytest.mark.skipif(
    not (tools.available("verilator") and tools.available("compiler")), reason="needs Verilator and a C++ compiler"
)

SMALL = IntegerEngine(rows=4, columns=8, depth=4, lanes=2, norm_rows=2, bus_bytes=8)
OTHERS = {
    "8x8x8": IntegerEngine(rows=8, columns=8, depth=8, lanes=4),
    "16x8x8": IntegerEngine(rows=16, columns=8, depth=8, lanes=2, norm_rows=4, bus_bytes=32),
    "8x16x4": IntegerEngine(rows=8, columns=16, depth=4, lanes=1, norm_rows=16, bus_bytes=4),
}
ENGINES = [SMALL, *(pytest.param(engine, id=name, marks=pytest.mark.slow) for name, engine in OTHERS.items())]
WORDS = 37


class Both:
    """The golden machine and the RTL on memories of their own."""

    def __init__(self, engine: IntegerEngine, memory: np.ndarray, stalls: float = 0.0, seed: int = 1) -> None:
        self.engine, self.stalls = engine, stalls
        self.golden, self.memory = memory, memory.copy()
        self.simulation = Simulation(engine, stalls=stalls, seed=seed)

    def write(self, program: Program, rows: np.ndarray) -> None:
        for memory in (self.golden, self.memory):
            program.layout["input"].write(memory, rows)

    def run(self, program: Program, *registers: int) -> None:
        Machine(self.engine, self.golden, registers).boot(program.address, program.count)
        ran = self.simulation.run(self.memory, program.address, program.count, registers)
        assert np.count_nonzero(self.golden != self.memory) == 0
        modelled = schedule_cycles(program.schedule, registers)
        if self.stalls == 0:
            assert (ran.cycles, dict(ran.busy)) == (modelled.total, dict(modelled.busy))
        else:
            assert ran.cycles > modelled.total


@pytest.mark.parametrize("stalls", [0.0, 0.3])
@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("engine", ENGINES)
def test_decoder_prefill_and_decode(engine: IntegerEngine, group: int, stalls: float) -> None:
    """Grouped queries, rotary, gated MLP, causal mask, caches; 8- and 4-bit weights."""
    stack = llama(Maker(1, group), 20, 4, 2, 8, 28, WORDS)
    assert stack.table is not None
    held = images(stack, OuterMemory(engine), rows=11, context=16)
    prompt, step = lower_prefill(held, engine, 11, outputs="all"), lower_decode(held, engine)
    both = Both(engine, step.image(), stalls)
    both.write(prompt, stack.table[np.arange(11) * 3 % WORDS])
    both.run(prompt)
    for position, token in enumerate((5, 36, 0), 11):
        both.run(step, token, position)


@pytest.mark.parametrize("engine", ENGINES)
def test_encoder_and_cross_attention(engine: IntegerEngine) -> None:
    make, outer = Maker(7), OuterMemory(engine)
    heard = images(bert(make, 24, 2, 32), outer, rows=11)
    decoder = crossed(make, 20, 2, 28, 24, WORDS)
    assert decoder.table is not None
    spoken = images(decoder, outer, rows=3, context=6, memory=heard.output)
    listen, begin = lower_prefill(heard, engine, 11), lower_prefill(spoken, engine, 3, outputs="all")
    step = lower_decode(spoken, engine)
    both = Both(engine, outer.image())
    both.write(listen, make.rows(11, 24))
    both.write(begin, decoder.table[[4, 9, 0]])
    for program, registers in ((listen, ()), (begin, ()), (step, (8, 3)), (step, (1, 4))):
        both.run(program, *registers)


@pytest.mark.parametrize("engine", ENGINES)
def test_tower_with_projector(engine: IntegerEngine) -> None:
    make = Maker(5)
    program = lower_prefill(vit(make, 24, 3, 40, 27, 10, 20), engine, 10)
    both = Both(engine, program.image(), stalls=0.1, seed=3)
    both.write(program, make.patches(10, 27))
    both.run(program)


def test_a_program_that_breaks_the_banks_rule_stops_with_an_error() -> None:
    program = bench_program(SMALL)
    memory = program.image()
    steps = memory[program.address :][: 64 * program.count].reshape(-1, 64)
    gemm = next(i for i, step in enumerate(steps) if step[0] == 3)
    steps[gemm].view("<u4")[2] = steps[gemm].view("<u4")[1]  # weights where the left operand is
    with pytest.raises(EngineError, match="met in one bank"):
        Simulation(SMALL).run(memory, program.address, program.count)
