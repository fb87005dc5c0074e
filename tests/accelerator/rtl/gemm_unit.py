"""gs_gemm compiled with memories, run beside the golden machine."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gossamer.accelerator
from gossamer.accelerator.golden.machine import Machine
from gossamer.accelerator.isa import encode
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Gemm, Space
from gossamer.eda.design import Design
from gossamer.eda.model import Model

RTL = Path(gossamer.accelerator.__file__).parent / "rtl"
SOURCES = [*sorted(RTL.glob("gs_*.v")), RTL / "gs_isa.vh"]
BENCH = Path(__file__).parent


class Unit:
    """The compiled bench of one engine."""

    def __init__(self, engine: IntegerEngine) -> None:
        self.engine = engine
        names = ("rows", "columns", "depth", "lanes", "bus_bytes", "parameters", "groups", "tables", "chunks", "lines")
        values = {name.upper(): int(getattr(engine, name)) for name in (*names, "four_bit")}
        self.model = Model(Design([*SOURCES, BENCH / "gemm_bench.v"], "gemm_bench", values), clock="clk_i", seed=1)
        self.model.set("rst_i", 1)
        self.model.clock(2)
        self.model.set("rst_i", 0)

    def fill(self, machine: Machine) -> None:
        """All memories as the machine's are."""
        self._write("write_i", line_i=None, data_i=machine.sram.reshape(self.engine.lines, -1))
        entries = machine.side[Space.PARAMETERS].reshape(-1, 8)
        self._write("entry_write_i", entry_i=None, entry_data_i=entries)
        for space in (Space.GROUPS, Space.TABLES):
            self.model.set("space_i", int(space))
            self._write("side_i", word_i=None, side_data_i=machine.side[space].reshape(-1, self.engine.bus_bytes))

    def run(self, step: Gemm, registers: list[int], cycles: int) -> tuple[int, int]:
        """Starts a step and looks for so many cycles: when it rests (or `cycles`), and the chunks it read."""
        self.model.set("instruction_i", int.from_bytes(encode(step).tobytes(), "little"))
        self.model.set("registers_i", sum(value << 32 * index for index, value in enumerate(registers)))
        start = np.zeros(cycles, int)
        start[0] = 1
        seen = self.model.run({"start_i": start}, ["busy_o", "issue_o"])
        self.model.set("start_i", 0)
        rest = np.flatnonzero(seen["busy_o"][1:] == 0)
        return int(rest[0]) + 1 if len(rest) else cycles, int(seen["issue_o"].sum())

    def lines(self) -> NDArray[np.uint8]:
        """The line memory as it is now."""
        seen = self.model.run({"line_i": np.arange(self.engine.lines)}, ["data_o"])["data_o"]
        return np.ascontiguousarray(seen).view(np.uint8).reshape(self.engine.lines, self.engine.line_rows, -1)

    def _write(self, enable: str, **columns: NDArray[np.uint8] | None) -> None:
        """Runs rows of bytes into a port, and their number (None) into another."""
        data = next(column for column in columns.values() if column is not None)
        rows = np.arange(len(data))
        short = data.shape[1] <= 8
        words = np.pad(data, ((0, 0), (0, 8 - data.shape[1]))).view("<u8")[:, 0] if short else data.view("<u4")
        given = {name: rows if column is None else words for name, column in columns.items()}
        self.model.run({enable: np.ones_like(rows), **given}, [])
        self.model.set(enable, 0)
