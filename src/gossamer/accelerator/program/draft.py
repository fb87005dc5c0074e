"""A schedule in the making: steps whose operands are buffers without an address yet."""

from dataclasses import dataclass, replace
from typing import Any

from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import NOWHERE, Space, Step


@dataclass(eq=False)
class Buffer:
    """Room in a memory on chip: lines, entries, group words or tables, from a multiple of `align` on."""

    name: str
    space: Space
    size: int
    align: int = 1


@dataclass(frozen=True)
class View:
    """A tensor (or range) in a buffer: `Tensor`, its line counted from the buffer's first."""

    buffer: Buffer
    line_rows: int
    offset: int = 0
    pitch: int = 0
    row: int = 0

    def chunk(self, k: int) -> "View":
        """From chunk `k` on."""
        return replace(self, offset=self.offset + k)

    def at_row(self, row: int) -> "View":
        """From row `row` on."""
        block, row = divmod(self.row + row, self.line_rows)
        return replace(self, offset=self.offset + block * self.pitch, row=row)


class Draft:
    """Steps in order, and which of their fields are views."""

    def __init__(self, engine: IntegerEngine) -> None:
        self.engine = engine
        self.steps: list[tuple[Step, dict[str, View]]] = []

    def emit(self, kind: type[Step], **fields: Any) -> None:
        """A step; fields may be views, which `place` turns into addresses."""
        views = {name: value for name, value in fields.items() if isinstance(value, View)}
        blank = {name: 0 if name in ("parameters", "groups", "table") else NOWHERE for name in views}
        self.steps.append((kind(**(fields | blank)), views))

    def tensor(self, name: str, rows: int, columns: int, bits: int = 8) -> View:
        """Room for a tensor in the unified memory."""
        engine = self.engine
        chunks = -(-columns * bits // 8 // engine.depth)
        return View(Buffer(name, Space.SRAM, -(-rows // engine.line_rows) * chunks), engine.line_rows, pitch=chunks)

    def side(self, name: str, space: Space, size: int, align: int = 1) -> View:
        """Room in a side memory."""
        return View(Buffer(name, space, size, align), self.engine.line_rows)
