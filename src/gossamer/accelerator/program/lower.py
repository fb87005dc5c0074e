"""An integer stack lowered to programs: prefill (and encoders, towers), and decode of one token at any position."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator.integer import Stack
from gossamer.accelerator.isa import BYTES, assemble
from gossamer.accelerator.program.attention import POSITION, TOKEN, decode_attention, self_attention
from gossamer.accelerator.program.blocks import blocks
from gossamer.accelerator.program.check import check
from gossamer.accelerator.program.draft import View
from gossamer.accelerator.program.fences import fenced
from gossamer.accelerator.program.fit import fitted
from gossamer.accelerator.program.images import AttentionImages, StackImages, images
from gossamer.accelerator.program.outer import Layout, OuterMemory, Place
from gossamer.accelerator.program.pages import paged
from gossamer.accelerator.program.products import Work, load_rows, load_table, narrow, norm, product, store_rows
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Add, End, Mode, Schedule


@dataclass(frozen=True)
class Program:
    """A program in an outer memory.

    `schedule`: what the engine does, in order. `address`, `count`: the instructions that the engine is started with
    (more are loaded by the program itself). `most`: the greatest value of each register that `schedule.registers`
    names. `layout`: `input` and `output` rows, and `memory` (cross attention) and `table` (embedding) where there are.
    """

    engine: IntegerEngine
    schedule: Schedule
    outer: OuterMemory
    layout: Layout
    address: int
    count: int
    most: tuple[int, ...] = ()

    def image(self) -> NDArray[np.uint8]:
        """The outer memory before the first run, with all programs that were lowered into it."""
        return self.outer.image()


def lower_prefill(
    stack: Stack | StackImages,
    engine: IntegerEngine,
    rows: int,
    start: int = 0,
    outputs: Literal["last", "all"] | None = None,
    output: Place | None = None,
    context: int = 0,
    memory_rows: int = 0,
) -> Program:
    """A run over `rows` rows of input at once: a prompt, an encoder, a vision tower with its projector.

    Args:
        stack: the model, or its images, which other programs may share (then caches are shared too).
        engine: the engine.
        rows: rows of input: embedded tokens (16 bits; the host copies rows of `table`, or a tower's `output` is the
            place of these), or patches.
        start: positions before the first row, whose keys and values are in the caches.
        outputs: rows that come out; of a causal stack with a head the last one, else all (without dropped ones).
        output: where they go, `StackImages.output` if not given.
        context: positions that caches hold (at least these), where `stack` is no `StackImages`.
        memory_rows: rows that cross attention reads, where `stack` is no `StackImages`.

    Raises:
        SettingError: what does not fit the engine, or the stack.
    """
    held = _held(stack, engine, rows, max(context, start + rows), memory_rows)
    if start and not held.causal:
        raise SettingError(f"{held.stack.name}: start is {start}; only a causal stack goes on from a cache")
    prefix = 0 if held.prefix is None else held.prefix.rows
    m = rows + prefix
    room = max(held.context, held.input.rows + prefix)
    if not 0 < rows <= held.input.rows or start + m > room:
        raise SettingError(
            f"{held.stack.name}: rows {start} … {start + m}; there is room for {held.input.rows} rows, {room} positions"
        )
    if outputs is None:
        outputs = "last" if held.causal and held.head is not None else "all"
    count = 1 if outputs == "last" else m - held.stack.drop
    target = (output or held.output).part(0, count)

    def build(work: Work) -> None:
        x = _input(work, held, rows, prefix, start)
        memory = None
        if held.memory is not None:
            memory = work.draft.tensor("memory", held.memory.rows, held.memory.columns)
            load_rows(work, held.memory, 0, held.memory.rows, memory)

        def attend(name: str, h: View, x: View, images: AttentionImages) -> View:
            return self_attention(work, name, h, x, m, images, start)

        x = blocks(work, held, x, m, attend, memory)
        first = _aligned(engine, m - 1) if outputs == "last" else 0
        skip = m - 1 - first if outputs == "last" else held.stack.drop
        _output(work, held, x.at_row(first), m - first, skip, target)

    return _program(held, engine, build, m, (), (), target)


def lower_decode(stack: Stack | StackImages, engine: IntegerEngine, context: int = 0, memory_rows: int = 0) -> Program:
    """One token at any position: R[1] = token, R[2] = its position; its keys and values are appended to the caches.

    A stack without a table of tokens reads the first row of `input` instead.

    Args:
        stack: the model, or its images with caches, filled by a prefill.
        engine: the engine.
        context: positions there is room for; not needed for images.
        memory_rows: rows that cross attention reads; not needed for images.

    Raises:
        SettingError: a stack that is not causal; what does not fit the engine.
    """
    held = _held(stack, engine, 1, context, memory_rows)
    if not held.causal or held.patch is not None:
        raise SettingError(f"{held.stack.name}: decode needs a causal stack of tokens")
    if held.context < 1:
        raise SettingError(f"{held.stack.name}: context is {held.context}; decode needs at least 1 position")
    target = held.output.part(0, 1)

    def build(work: Work) -> None:
        x = work.draft.tensor("embedded", 1, held.stack.width, 16)
        load_rows(work, held.table or held.input, 0, 1, x, TOKEN if held.table else 0)
        x = _positioned(work, held, x, 1, 0, POSITION)

        def attend(name: str, h: View, x: View, images: AttentionImages) -> View:
            return decode_attention(work, name, h, x, images, held.context)

        x = blocks(work, held, x, 1, attend, None)
        _output(work, held, x, 1, 0, target)

    most = (held.table.rows - 1 if held.table else 0, held.context - 1)
    return _program(held, engine, build, 1, ("token", "position"), most, target)


def _held(stack: Stack | StackImages, engine: IntegerEngine, rows: int, context: int, memory_rows: int) -> StackImages:
    if isinstance(stack, Stack):
        return images(stack, OuterMemory(engine), rows=rows, context=context, memory_rows=memory_rows)
    if stack.outer.engine.model_copy(update={"bank_lines": engine.bank_lines}) != engine:
        raise SettingError(f"{stack.stack.name}: its images were made for another engine")
    return stack


def _input(work: Work, held: StackImages, rows: int, prefix: int, start: int) -> View:
    """The residual stream at the first block."""
    m, width = rows + prefix, held.stack.width
    x = work.draft.tensor("input", m, width, 16)
    if held.patch is None:
        load_rows(work, held.input, 0, rows, x.at_row(prefix))
    else:
        # rows of the prefix are computed too, from whatever is there, so that row tiles stay whole; then overwritten
        patches = work.draft.tensor("patches", m, held.patch.k)
        load_rows(work, held.input, 0, rows, patches.at_row(prefix))
        product(work, patches, m, held.patch, Mode.INT16, x)
    if held.prefix is not None:
        load_rows(work, held.prefix, 0, prefix, x)
    return _positioned(work, held, x, m, start)


def _positioned(work: Work, held: StackImages, x: View, m: int, start: int, register: int = 0) -> View:
    """Positions added, and the norm on the way in."""
    width = held.stack.width
    if held.positions is not None:
        positions = work.draft.tensor("positions", m, width, 16)
        load_rows(work, held.positions, start, m, positions, register)
        out = work.draft.tensor("positioned", m, width, 16)
        work.draft.emit(Add, a=x, b=positions, out=out, m=m, n=width)
        x = out
    return x if held.entry is None else norm(work, "entry", x, m, held.entry, wide=True)


def _output(work: Work, held: StackImages, x: View, m: int, skip: int, target: Place) -> None:
    """What comes after the blocks, on `m` rows; rows from `skip` on go to `target`."""
    stack = held.stack
    if held.final is not None:
        h = norm(work, "final", x, m, held.final)
    elif stack.exit is not None:
        h = narrow(work, "exit", x, m, stack.width, stack.exit)
    elif held.head is None and not held.projector:
        store_rows(work, x.at_row(skip), m - skip, target, 0, stack.width)
        return
    else:
        raise SettingError(f"{stack.name}: its head needs a final norm or `exit` before it")
    for matrix, address in held.projector:
        out = work.draft.tensor(matrix.name, m, matrix.n)
        table = 0 if address is None else load_table(work, f"{matrix.name} table", address)
        product(work, h, m, matrix, Mode.INT8, out, table=table)
        h = out
    if held.head is None:
        store_rows(work, h.at_row(skip), m - skip, target, 0, target.columns)
        return

    def done(first: int, columns: int, piece: View) -> None:
        store_rows(work, piece.at_row(skip), m - skip, target, 0, columns, first)

    product(work, h, m, held.head, Mode.INT16, None, done=done)


def _aligned(engine: IntegerEngine, row: int) -> int:
    """The last row up to `row` at which every unit can start."""
    tile = max(engine.rows, engine.norm_rows)
    return row // tile * tile


def _program(
    held: StackImages,
    engine: IntegerEngine,
    build: Callable[[Work], None],
    rows: int,
    registers: tuple[str, ...],
    most: tuple[int, ...],
    output: Place,
) -> Program:
    steps = [*fenced(fitted(engine, build, rows, most), engine, most), End()]
    outer = held.outer
    count = len(paged(steps, engine, 0))
    address = outer.reserve(count * BYTES)
    schedule = Schedule(engine, tuple(paged(steps, engine, address)), registers)
    outer.fill(address, np.frombuffer(assemble(schedule.steps), np.uint8))
    check(schedule, outer.size, most)
    layout = {"input": held.input, "output": output}
    layout |= {"memory": held.memory} if held.memory is not None else {}
    layout |= {"table": held.table} if held.table is not None else {}
    return Program(engine, schedule, outer, layout, address, min(count, engine.instructions), most)
