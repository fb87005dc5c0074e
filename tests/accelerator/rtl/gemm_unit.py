"""gs_gemm compiled with memories, and the same step by golden arithmetic on memories of the same layout."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gossamer.accelerator
from gossamer.accelerator.golden import arithmetic
from gossamer.accelerator.isa import encode
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Gemm, Mode, Space, Tensor
from gossamer.eda.design import Design
from gossamer.eda.model import Model

RTL = Path(gossamer.accelerator.__file__).parent / "rtl"
LINES = 512
"""Of the bench's memory."""


@dataclass
class Memories:
    """What a `Gemm` reads: lines uint8 (lines, line_rows, depth), entries (parameters, 3), groups, tables; octaves within."""

    engine: IntegerEngine
    lines: NDArray[np.uint8]
    entries: NDArray[np.int64]
    groups: NDArray[np.uint8]
    tables: NDArray[np.int8]
    octaves: list[NDArray[np.int64]] = field(default_factory=list)

    def read(self, at: Tensor, rows: int, chunks: int, dtype: str = "<i1") -> NDArray[np.int64]:
        """`rows` rows of `chunks` chunks as numbers."""
        size = self.engine.line_rows
        r = at.row + np.arange(rows)[:, None]
        found = self.lines[at.line + r // size * at.pitch + np.arange(chunks), r % size]
        return found.reshape(rows, -1).view(dtype).astype(np.int64)

    def write(self, at: Tensor, values: NDArray[np.int64], dtype: str) -> None:
        """Rows of whole chunks."""
        size, depth = self.engine.line_rows, self.engine.depth
        data = values.astype(dtype).view(np.uint8).reshape(len(values), -1, depth)
        r = at.row + np.arange(len(values))[:, None]
        self.lines[at.line + r // size * at.pitch + np.arange(data.shape[1]), r % size] = data


def golden(memories: Memories, step: Gemm, registers: list[int]) -> None:
    """The step, by whole tensors."""
    engine, depth = memories.engine, memories.engine.depth
    added = registers[step.register]
    n, k, limit = step.n + added * step.add_n, step.k + added * step.add_k, step.limit + added * step.add_limit
    chunks, wide = -(-k // depth), step.mode is Mode.INT16
    tile = engine.columns * (1 + step.four_bit)
    tiles = -(-n // tile)
    w = memories.read(step.w, tiles * engine.columns, chunks, "<u1").reshape(-1, chunks, depth)
    numbers = np.ones((tiles * tile, chunks), np.int64)
    if step.four_bit:
        w = w.reshape(tiles, 1, engine.columns, chunks, depth)
        w = np.concatenate([w & 15, w >> 4], axis=1).reshape(-1, chunks, depth)
        w = np.where(w > 7, w - 16, w)
        group = step.group or chunks
        of_column = -(-chunks // group)
        words = memories.groups[step.groups : step.groups + tiles * of_column].reshape(tiles, of_column, -1)
        both = np.concatenate([words & 15, words >> 4], axis=2).transpose(0, 2, 1).reshape(-1, of_column)
        numbers = np.repeat(both.astype(np.int64), group, axis=1)[:, :chunks]
    else:
        w = w.astype(np.int8).astype(np.int64)
    a = memories.read(step.a, step.m, chunks, "<u1" if step.mode is Mode.VALUE else "<i1").reshape(step.m, chunks, depth)
    if step.mode is Mode.VALUE:
        octaves = [octave[: step.m] for octave in memories.octaves]
        a = np.stack([arithmetic.settle(a[:, c], octaves[c], octaves[-1]) for c in range(chunks)], axis=1)
    sums = np.einsum("mcd,ncd,nc->mn", a, w, numbers).astype(np.int32).astype(np.int64)
    columns = -(-n * (1 + wide) // depth) * depth // (1 + wide)
    sums = sums[:, :columns]
    bias, multiplier, shift = memories.entries[step.parameters : step.parameters + columns].T
    aux = None
    if step.aux.pitch:
        of_aux = columns * (1 + wide) // depth
        read = min(step.aux_period or of_aux, of_aux)
        aux = memories.read(step.aux, step.m, read, "<i2" if wide else "<i1")
        aux = np.tile(aux, -(-of_aux // read))[:, :columns]
    if step.mode is Mode.SCORE:
        softmax = arithmetic.Softmax.start(step.m)
        y = arithmetic.requantise(sums, step.multiplier, step.shift)
        valid = np.arange(columns) < limit + step.causal * np.arange(step.m)[:, None]
        parts = [slice(c, c + depth) for c in range(0, columns, depth)]
        y = np.concatenate([softmax.exponentials(y[:, part], valid[:, part]) for part in parts], axis=1)
        memories.octaves = softmax.octaves
    elif step.mode is Mode.VALUE:
        y = arithmetic.average(sums, a.sum((1, 2)), step.shift)
    else:
        y = arithmetic.requantise(sums + bias, multiplier, shift)
        if step.mode is Mode.INT8:
            y = arithmetic.saturate(y, 8)
            y = memories.tables[step.table - 1][y & 255] if step.table else y
        elif step.mode is Mode.INT16:
            y = arithmetic.saturate(y, 16) if aux is None else arithmetic.saturate(arithmetic.saturate(y, 24) + aux, 16)
        elif step.mode is Mode.MULTIPLY:
            y = arithmetic.requantise(arithmetic.saturate(y, 8) * aux, step.multiplier, step.shift)
            y = arithmetic.saturate(y, 8)
        else:
            y = arithmetic.rotate(arithmetic.saturate(y, 16), aux, step.shift)
    memories.write(step.out, y, "<i2" if wide else "<u1" if step.mode is Mode.SCORE else "<i1")


class Unit:
    """The compiled bench of one engine."""

    def __init__(self, engine: IntegerEngine) -> None:
        self.engine = engine
        names = ("rows", "columns", "depth", "lanes", "bus_bytes", "parameters", "groups", "tables", "chunks")
        values = {name.upper(): int(getattr(engine, name)) for name in names}
        sources = [*sorted(RTL.glob("gs_*.v")), RTL / "gs_isa.vh", Path(__file__).parent / "gemm_bench.v"]
        values |= {"FOUR_BIT": int(engine.four_bit), "LINES": LINES}
        self.model = Model(Design(sources, "gemm_bench", values), clock="clk_i", seed=1)
        self.model.set("rst_i", 1)
        self.model.clock(2)
        self.model.set("rst_i", 0)

    def fill(self, memories: Memories) -> None:
        """Writes all memories."""
        lines = memories.lines.reshape(LINES, -1)
        self._columns(write_i=np.ones(LINES, int), line_i=np.arange(LINES), data_i=lines)
        self.model.set("write_i", 0)
        entries = memories.entries
        words = (entries[:, 0] & 0xFFFFFFFF) | entries[:, 1] << 32 | entries[:, 2] << 48
        self._columns(entry_write_i=np.ones(len(words), int), entry_i=np.arange(len(words)), entry_data_i=words)
        self.model.set("entry_write_i", 0)
        self._side(Space.GROUPS, memories.groups)
        self._side(Space.TABLES, memories.tables.view(np.uint8))

    def run(self, step: Gemm, registers: list[int], most: int) -> tuple[int, int]:
        """Cycles from the start to rest, and chunks read; an AssertionError where it takes more than `most`."""
        self.model.set("instruction_i", int.from_bytes(encode(step).tobytes(), "little"))
        self.model.set("registers_i", sum(value << 32 * index for index, value in enumerate(registers)))
        start = np.zeros(most + 1, int)
        start[0] = 1
        seen = self.model.run({"start_i": start}, ["busy_o", "issue_o"])
        self.model.set("start_i", 0)
        rest = np.flatnonzero(seen["busy_o"][1:] == 0)
        assert len(rest), f"still busy after {most} cycles"
        return int(rest[0]) + 1, int(seen["issue_o"].sum())

    def lines(self) -> NDArray[np.uint8]:
        """The line memory as it is now."""
        seen = self.model.run({"line_i": np.arange(LINES)}, ["data_o"])["data_o"]
        return seen.astype("<u4" if seen.dtype == np.uint32 else "<u8").view(np.uint8).reshape(LINES, self.engine.line_rows, -1)

    def _side(self, space: Space, data: NDArray[np.uint8]) -> None:
        words = data.reshape(-1, self.engine.bus_bytes)
        ones = np.ones(len(words), int)
        self._columns(side_i=ones, space_i=ones * int(space), word_i=np.arange(len(words)), side_data_i=words)
        self.model.set("side_i", 0)

    def _columns(self, **columns: NDArray[np.generic]) -> None:
        """Runs columns; rows of bytes become what the port takes."""
        given = {}
        for name, column in columns.items():
            if column.ndim == 2:
                short = column.shape[1] <= 8
                column = np.pad(column, ((0, 0), (0, 8 - column.shape[1]))).view("<u8")[:, 0] if short else column.view("<u4")
            given[name] = column
        self.model.run(given, [])
