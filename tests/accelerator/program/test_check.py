"""The static checker, and what it promises: units may run as early or as late as fences let them."""

from dataclasses import replace

import numpy as np
import pytest
from tests.accelerator.program.random_stacks import Maker, bert, llama

from gossamer.accelerator.golden.machine import Machine, run
from gossamer.accelerator.integer import Stack
from gossamer.accelerator.isa import assemble
from gossamer.accelerator.program import Program, ScheduleError, check, lower_decode, lower_prefill
from gossamer.accelerator.program.pages import paged
from gossamer.dataflow.engine import UNITS, IntegerEngine
from gossamer.dataflow.schedule import Add, End, Fence, Gemm, Load, Mode, Schedule, Step, Store, Tensor, unit

ENGINE = IntegerEngine(
    rows=4, columns=8, depth=4, lanes=2, norm_rows=4, bus_bytes=8, bank_lines=128, parameters=512, instructions=64
)


@pytest.fixture(scope="module")
def prompt() -> Program:
    return lower_prefill(llama(Maker(1), 20, 4, 2, 6, 28, 37), ENGINE, 9)


@pytest.fixture(scope="module")
def step() -> Program:
    return lower_decode(llama(Maker(1), 20, 4, 2, 6, 28, 37), ENGINE, context=12)


def changed(program: Program, index: int, *steps: Step) -> None:
    """Checks the program with one step replaced."""
    kept = program.schedule.steps
    schedule = Schedule(program.engine, (*kept[:index], *steps, *kept[index + 1 :]))
    check(schedule, program.outer.size, program.most)


def find(program: Program, kind: type[Step], **fields: object) -> int:
    return next(
        i
        for i, each in enumerate(program.schedule.steps)
        if isinstance(each, kind) and all(getattr(each, name) == value for name, value in fields.items())
    )


def test_every_fence_is_needed() -> None:
    engine = ENGINE.model_copy(update={"instructions": 1024})
    stack = llama(Maker(1), 20, 4, 2, 6, 28, 37)
    for program in (lower_prefill(stack, engine, 9), lower_decode(stack, engine, context=12)):
        fences = [i for i, each in enumerate(program.schedule.steps) if isinstance(each, Fence)]
        assert len(fences) > 20
        for i in fences:
            with pytest.raises(ScheduleError, match="a fence is missing"):
                changed(program, i)


class Late(Machine):
    """Steps of some units are done at the last moment that fences and busy units allow."""

    def __init__(self, late: set[str], *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.late = late
        self.waiting: dict[str, Step] = {}

    def do(self, step: Step) -> None:
        by = unit(step)
        if by is None:
            names = [name for name in UNITS if isinstance(step, End) or getattr(step, name)]
            for name in names:
                self._finish(name)
            return
        self._finish(by)
        if by in self.late:
            self.waiting[by] = step
        else:
            super().do(step)

    def _finish(self, name: str) -> None:
        if name in self.waiting:
            super().do(self.waiting.pop(name))


@pytest.mark.parametrize("late", [{"load"}, {"store"}, {"compute"}, {"load", "store"}, {"store", "compute"}])
def test_units_may_be_late(late: set[str], prompt: Program, step: Program) -> None:
    for program, registers in ((prompt, []), (step, [5, 7])):
        memory = program.image()
        program.layout["input"].write(memory, Maker(2).rows(program.layout["input"].rows, 20))
        other = memory.copy()
        run(program.schedule, memory, registers)
        Late(late, program.engine, other, registers).run(program.schedule)
        np.testing.assert_array_equal(memory, other)


@pytest.mark.parametrize("stack", [llama(Maker(3), 20, 4, 2, 6, 28, 37), bert(Maker(4), 20, 2, 28)])
def test_what_was_on_chip_before_does_not_matter(stack: Stack) -> None:
    program = lower_prefill(stack, ENGINE, 9, outputs="all")
    memory = program.image()
    program.layout["input"].write(memory, Maker(2).rows(9, 20))
    other = memory.copy()
    run(program.schedule, memory)
    machine = Machine(program.engine, other)
    random = np.random.default_rng(5)
    for part in (machine.sram, *machine.side.values()):
        part[:] = random.integers(0, 256, part.shape)
    machine.run(program.schedule)
    expected = program.layout["output"].read(memory)
    np.testing.assert_array_equal(program.layout["output"].read(other), expected)


def test_a_step_at_fault_is_named(prompt: Program, step: Program) -> None:
    steps = prompt.schedule.steps
    at = find(prompt, Gemm, mode=Mode.INT8)
    gemm = steps[at]
    assert isinstance(gemm, Gemm)
    with pytest.raises(ScheduleError, match=rf"step {at} \(Gemm\): a and w use bank"):
        changed(prompt, at, replace(gemm, a=replace(gemm.a, line=gemm.w.line)))
    with pytest.raises(ScheduleError, match=r"reaches .* of 512 in PARAMETERS"):
        changed(prompt, at, replace(gemm, parameters=510))
    with pytest.raises(ScheduleError, match=r"parameters is .*; a multiple of 2 is needed"):
        changed(prompt, at, replace(gemm, parameters=gemm.parameters + 1))
    with pytest.raises(ScheduleError, match=r"reaches .* in SRAM"):
        changed(prompt, at, replace(gemm, out=replace(gemm.out, line=ENGINE.lines - 1)))
    with pytest.raises(ScheduleError, match=r"out.row is 1; a multiple of 4 is needed"):
        changed(prompt, at, replace(gemm, out=replace(gemm.out, row=1)))
    at = find(prompt, Gemm, mode=Mode.SCORE)
    score = steps[at]
    assert isinstance(score, Gemm)
    with pytest.raises(ScheduleError, match="VALUE reads more or fewer columns"):
        changed(prompt, at, replace(score, n=score.n + 4))
    with pytest.raises(ScheduleError, match="5 rows of scores; the engine takes 4"):
        changed(prompt, at, replace(score, m=5))
    at = find(step, Store)
    store = step.schedule.steps[at]
    assert isinstance(store, Store)
    with pytest.raises(ScheduleError, match="in OUTER"):
        changed(step, at, replace(store, address=step.outer.size - 32))
    at = find(step, Load, register=1)
    load = step.schedule.steps[at]
    assert isinstance(load, Load)
    with pytest.raises(ScheduleError, match="address_step is 4; a multiple of 8"):
        changed(step, at, replace(load, address_step=4))
    with pytest.raises(ScheduleError, match="reaches"):
        check(step.schedule, step.outer.size, (36, 1 << 20))


def test_sums_that_could_wrap_are_refused() -> None:
    engine = IntegerEngine(bank_lines=1 << 16)
    gemm = Gemm(
        a=Tensor(0, 16384), w=Tensor(1 << 17, 16384), out=Tensor(1 << 18, 1), m=1, n=8, k=131072,
        mode=Mode.INT8,
    )  # fmt: skip
    with pytest.raises(ScheduleError, match="sums over k = 131072 can pass 32 bits"):
        check(Schedule(engine, (gemm, End())), 0)
    check(Schedule(engine, (replace(gemm, k=131064), End())), 0)


def test_an_instruction_is_not_fetched_while_it_is_loaded() -> None:
    nothing = Add(Tensor(0, 2), Tensor(128, 2), 1, 4, has_b=False)
    steps = paged([*[nothing] * 100, End()], ENGINE, 0)
    loads = [i for i, each in enumerate(steps) if isinstance(each, Load)]
    assert loads == [32, 64]
    check(Schedule(ENGINE, tuple(steps)), 1 << 14)
    assert isinstance(steps[63], Fence)
    steps[63] = nothing
    with pytest.raises(ScheduleError, match=r"step 64 \(Load\): its place in the ring, 0, may still be loaded"):
        check(Schedule(ENGINE, tuple(steps)), 1 << 14)


@pytest.mark.parametrize("count", [63, 64, 65, 94, 95, 96, 97, 124, 125, 126, 127, 128, 200])
def test_pages_run_every_step_once(count: int) -> None:
    made = [Add(Tensor(0, 2), Tensor(128, 2), 1, 4, has_b=False, shift=i % 32) for i in range(count)]
    steps = paged([*made, End()], ENGINE, 4096)
    memory = np.zeros(1 << 15, np.uint8)
    code = np.frombuffer(assemble(steps), np.uint8)
    memory[4096 : 4096 + code.size] = code
    check(Schedule(ENGINE, tuple(steps)), memory.size)
    done: list[Step] = []

    class Watched(Machine):
        def do(self, step: Step) -> None:
            done.append(step)
            super().do(step)

    Watched(ENGINE, memory).boot(4096, min(len(steps), ENGINE.instructions))
    assert done == steps[:-1]
    assert [each for each in done if isinstance(each, Add)] == made
