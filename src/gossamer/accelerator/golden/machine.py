"""The golden machine: runs a schedule step by step on the engine's memories, bit for bit what the RTL does.

Steps run one after the other; that the engine's units overlap changes nothing, provided the schedule passes
`accelerator/program/check.py`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator.golden.arithmetic import (
    OCTAVE_BITS,
    Ints,
    Softmax,
    average,
    normalise,
    requantise,
    rotate,
    saturate,
    scale_norm,
    settle,
)
from gossamer.accelerator.isa import BYTES, decode
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import REGISTERS, IntegerEngine
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

Bytes = NDArray[np.uint8]


class Machine:
    """The engine's memories, all zero at first, and the outer memory, which is changed in place.

    Args:
        engine: its shape.
        memory: outer memory, uint8.
        registers: R[1], R[2], …
    """

    def __init__(self, engine: IntegerEngine, memory: Bytes, registers: Sequence[int] = ()) -> None:
        self.engine, self.memory = engine, memory
        self.registers = [0, *registers] + [0] * (REGISTERS - 1 - len(registers))
        self.sram = np.zeros((engine.lines, engine.line_rows, engine.depth), np.uint8)
        self.side: dict[Space, Bytes] = {
            Space.PARAMETERS: np.zeros(8 * engine.parameters, np.uint8),
            Space.GROUPS: np.zeros(engine.columns * engine.groups, np.uint8),
            Space.TABLES: np.zeros(256 * engine.tables, np.uint8),
            Space.INSTRUCTIONS: np.zeros(BYTES * engine.instructions, np.uint8),
        }
        self._softmax = Softmax.start(0)

    def run(self, steps: Sequence[Step] | Schedule) -> None:
        """Every step of a schedule, in order."""
        for step in steps:
            self.do(step)

    def boot(self, address: int, count: int) -> None:
        """As the engine itself does it: `count` instructions loaded from `address` to the ring, run from the first."""
        ring = self.side[Space.INSTRUCTIONS].reshape(-1, BYTES)
        ring[:count] = self.memory[address : address + count * BYTES].reshape(count, BYTES)
        at = 0
        while not isinstance(step := decode(ring[at % len(ring)].view("<u4")), End):
            self.do(step)
            at += 1

    def do(self, step: Step) -> None:
        """One step."""
        match step:
            case Load():
                self._load(step)
            case Store():
                self._store(step)
            case Gemm():
                self._gemm(step)
            case Norm():
                self._norm(step)
            case Add():
                self._add(step)
            case Fence() | End():
                pass

    def read(self, place: Tensor, rows: int, chunks: int) -> Bytes:
        """(rows, chunks · depth) bytes of a tensor."""
        lines, within = self._lines(place, rows, chunks)
        return self.sram[lines, within].reshape(rows, -1)

    def write(self, place: Tensor, data: Bytes) -> None:
        """(rows, chunks · depth) bytes into a tensor."""
        lines, within = self._lines(place, len(data), data.shape[1] // self.engine.depth)
        self.sram[lines, within] = data.reshape(*lines.shape, self.engine.depth)

    def _lines(self, place: Tensor, rows: int, chunks: int) -> tuple[Ints, Ints]:
        row = place.row + np.arange(rows)[:, None]
        lines = place.line + row // self.engine.line_rows * place.pitch + np.arange(chunks)
        if lines.size and lines.max() >= self.engine.lines:
            raise SettingError(f"line {lines.max()} is past the unified memory's {self.engine.lines} lines")
        return lines, np.broadcast_to(row % self.engine.line_rows, lines.shape)

    def _outer(self, address: int, count: int) -> Bytes:
        if not 0 <= address <= address + count <= len(self.memory):
            raise SettingError(f"bytes {address} … {address + count} are outside the memory of {len(self.memory)}")
        return self.memory[address : address + count]

    def _load(self, step: Load) -> None:
        engine, given = self.engine, self.registers[step.register]
        address = step.address + given * step.address_step
        if step.pattern == Pattern.LINES:
            target = self.sram.reshape(-1) if step.space == Space.SRAM else self.side[step.space]
            first = step.to.line * (engine.line_bytes if step.space == Space.SRAM else engine.bus_bytes)
            size = step.words(engine.line_rows, given) * engine.bus_bytes
            if first + size > len(target):
                raise SettingError(f"a load of {size} bytes to {step.space.name} at {first} passes its end")
            target[first : first + size] = self._outer(address, size)
            return
        count = step.rows(given)
        if count == 0:
            return
        width = step.chunks * engine.depth
        data: Bytes = np.stack([self._outer(address + i * step.row_pitch, width) for i in range(count)])
        if step.pattern == Pattern.ROWS:
            self.write(step.to, data)
            return
        lines, within = self._lines(step.to, width, -(-count // engine.depth))
        column = np.arange(count)
        self.sram[lines[:, column // engine.depth], within[:, column // engine.depth], column % engine.depth] = data.T

    def _store(self, step: Store) -> None:
        engine = self.engine
        if step.pattern == Pattern.LINES:
            lines = self.sram[step.source.line : step.source.line + step.count].reshape(-1)
            self._outer(step.address, len(lines))[:] = lines
            return
        if step.count == 0:
            return
        data: Bytes = self.read(step.source, step.count, step.chunks).reshape(step.count, step.chunks, engine.depth)
        for i in range(step.count):
            block, row = divmod(step.row + self.registers[step.register] + i, engine.line_rows)
            first = step.address + block * step.block_pitch + row * step.row_pitch
            for k in range(step.chunks):
                self._outer(first + k * step.chunk_pitch, engine.depth)[:] = data[i, k]

    def _gemm(self, step: Gemm) -> None:
        engine, given = self.engine, self.registers[step.register]
        n, k = step.sizes(given)
        tile = engine.columns * (2 if step.four_bit else 1)
        chunks, padded = -(-k // engine.depth), -(-n // tile) * tile
        left = self.read(step.a, step.m, chunks)
        if step.mode == Mode.VALUE:
            parts = left.astype(np.int64).reshape(step.m, chunks, engine.depth)
            last = self._softmax.maximum >> OCTAVE_BITS
            settled = [settle(parts[:, i], self._softmax.octaves[i], last) for i in range(chunks)]
            a: Ints = np.concatenate(settled, axis=1)
        else:
            a = left.view(np.int8).astype(np.int64)
        sums = self._sums(step, a, padded, chunks)
        if step.mode == Mode.VALUE:
            self._put(step, average(sums, a.sum(1), step.shift), n)
        elif step.mode == Mode.SCORE:
            limit = step.limit + given * step.add_limit
            self._score(step, requantise(sums, step.multiplier, step.shift), n, limit)
        else:
            self._put(step, self._posted(step, sums, n), n)

    def _sums(self, step: Gemm, a: Ints, padded: int, chunks: int) -> Ints:
        """(m, padded) sums, 32 bits wrapping."""
        engine = self.engine
        if not step.four_bit:
            return _wrapped(a @ self.read(step.w, padded, chunks).view(np.int8).astype(np.int64).T)
        tiles = padded // (2 * engine.columns)
        w: Bytes = self.read(step.w, padded // 2, chunks).reshape(tiles, engine.columns, chunks * engine.depth)
        halves = np.concatenate([_signed(w & 15), _signed(w >> 4)], axis=1).reshape(padded, chunks, engine.depth)
        groups = -(-chunks // step.group)
        words: Bytes = self.side[Space.GROUPS].reshape(-1, engine.columns)[step.groups : step.groups + tiles * groups]
        words = words.reshape(tiles, groups, engine.columns).transpose(0, 2, 1)
        factors = np.concatenate([words & 15, words >> 4], axis=1).reshape(padded, groups).astype(np.int64)
        factors = np.repeat(factors, step.group, axis=1)[:, :chunks]
        return _wrapped(a @ (halves * factors[:, :, None]).reshape(padded, -1).T)

    def _posted(self, step: Gemm, sums: Ints, n: int) -> Ints:
        engine = self.engine
        entries = self.side[Space.PARAMETERS][8 * step.parameters :][: 8 * sums.shape[1]].reshape(-1, 8)
        bias = np.ascontiguousarray(entries[:, :4]).view("<i4")[:, 0].astype(np.int64)
        multiplier = np.ascontiguousarray(entries[:, 4:6]).view("<u2")[:, 0].astype(np.int64)
        y = requantise(sums + bias, multiplier, entries[:, 6].astype(np.int64))
        if step.mode == Mode.INT8:
            y = saturate(y, 8)
            if step.table:
                table = self.side[Space.TABLES][256 * (step.table - 1) :][:256].view(np.int8)
                y = table[y & 255].astype(np.int64)
            return y
        if step.mode == Mode.INT16 and not step.aux.pitch:
            return saturate(y, 16)
        chunks = -(-n * (2 if step.mode == Mode.INT16 else 1) // engine.depth)
        used = min(chunks, step.aux_period) if step.aux_period else chunks
        aux = self.read(step.aux, step.m, used)
        if step.aux_period:
            aux = np.tile(aux, -(-chunks // used))[:, : chunks * engine.depth]
        if step.mode == Mode.INT16:
            return saturate(saturate(y, 24)[:, : chunks * engine.depth // 2] + aux.view("<i2"), 16)
        y, signed = y[:, : chunks * engine.depth], aux.view(np.int8).astype(np.int64)
        if step.mode == Mode.MULTIPLY:
            return saturate(requantise(saturate(y, 8) * signed, step.multiplier, step.shift), 8)
        return rotate(saturate(y, 16), signed, step.shift)

    def _score(self, step: Gemm, scores: Ints, n: int, limit: int) -> None:
        depth = self.engine.depth
        self._softmax = Softmax.start(step.m)
        limits = limit + np.arange(step.m) * step.causal
        out = []
        for k in range(-(-n // depth)):
            valid = np.arange(k * depth, (k + 1) * depth) < limits[:, None]
            out.append(self._softmax.exponentials(scores[:, k * depth : (k + 1) * depth], valid))
        self._put(step, np.concatenate(out, axis=1), n)

    def _put(self, step: Gemm, values: Ints, n: int) -> None:
        wide = step.mode == Mode.INT16
        chunks = -(-n * (2 if wide else 1) // self.engine.depth)
        data = np.ascontiguousarray(values.astype("<i2" if wide else np.int8)).view(np.uint8)
        self.write(step.out, data[:, : chunks * self.engine.depth])

    def _wide(self, place: Tensor, m: int, n: int) -> Ints:
        return self.read(place, m, -(-2 * n // self.engine.depth)).view("<i2")[:, :n].astype(np.int64)

    def _narrow(self, place: Tensor, values: Ints, wide: bool) -> None:
        """Writes 8- or 16-bit rows, the last chunk filled with zeros."""
        per = self.engine.depth // (2 if wide else 1)
        m, n = values.shape
        full = np.zeros((m, -(-n // per) * per), "<i2" if wide else np.int8)
        full[:, :n] = values
        self.write(place, full.view(np.uint8))

    def _norm(self, step: Norm) -> None:
        entries = self.side[Space.PARAMETERS][8 * step.parameters :][: 8 * step.n].reshape(-1, 8)
        offset = np.ascontiguousarray(entries[:, :4]).view("<i4")[:, 0].astype(np.int64)
        gain = np.ascontiguousarray(entries[:, 4:6]).view("<i2")[:, 0].astype(np.int64)
        rows = normalise(self._wide(step.a, step.m, step.n), step.epsilon, step.centred)
        self._narrow(step.out, scale_norm(rows, gain, offset, step.shift, 16 if step.wide else 8), step.wide)

    def _add(self, step: Add) -> None:
        x = self._wide(step.a, step.m, step.n)
        if step.has_b:
            x = x + self._wide(step.b, step.m, step.n)
        x = saturate(x, 16) if step.wide else saturate(requantise(x, step.multiplier, step.shift), 8)
        self._narrow(step.out, x, step.wide)


def run(schedule: Schedule, memory: Bytes, registers: Sequence[int] = ()) -> Machine:
    """A schedule on a fresh machine; `memory` (uint8) is changed in place."""
    machine = Machine(schedule.engine, memory, registers)
    machine.run(schedule)
    return machine


def _signed(nibble: NDArray[np.integer]) -> Ints:
    return (nibble.astype(np.int64) ^ 8) - 8


def _wrapped(sums: Ints) -> Ints:
    return sums.astype(np.int32).astype(np.int64)
