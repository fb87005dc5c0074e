"""The outer memory: what lies where, for the program and for the host.

Two forms. A *line image* is the unified memory's own order, so that a contiguous load brings whole lines. *Rows* lie
one after the other at a pitch that is a multiple of the bus word: what the host writes and reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine

Bytes = NDArray[np.uint8]
PAGE = 4096
"""What is larger than this starts at a multiple of it: a burst may not cross such a boundary."""


@dataclass(frozen=True)
class Place:
    """Rows in the outer memory: row i at `address + i · pitch`, `columns` signed elements of `bits` (8 or 16)."""

    address: int
    rows: int
    columns: int
    bits: int
    pitch: int

    def read(self, memory: Bytes) -> NDArray[np.int64]:
        """(rows, columns) from the outer memory."""
        wide = self.columns * self.bits // 8
        rows = memory[self.address : self.address + self.rows * self.pitch].reshape(self.rows, self.pitch)[:, :wide]
        return np.ascontiguousarray(rows).view("<i2" if self.bits == 16 else np.int8).astype(np.int64)

    def write(self, memory: Bytes, values: NDArray[np.integer], row: int = 0) -> None:
        """(n, columns) integers into rows `row` …, in place.

        Raises:
            SettingError: a shape that does not fit.
        """
        n, columns = values.shape
        if columns != self.columns or not 0 <= row <= row + n <= self.rows:
            raise SettingError(f"rows {row} … {row + n} of {columns} columns; there are {self.rows} of {self.columns}")
        data = np.ascontiguousarray(values.astype("<i2" if self.bits == 16 else np.int8)).view(np.uint8)
        first = self.address + row * self.pitch
        memory[first : first + n * self.pitch].reshape(n, self.pitch)[:, : data.shape[1]] = data

    def part(self, row: int, rows: int) -> "Place":
        """`rows` of these rows, from `row` on."""
        if not 0 <= row <= row + rows <= self.rows:
            raise SettingError(f"rows {row} … {row + rows}; there are {self.rows}")
        return replace(self, address=self.address + row * self.pitch, rows=rows)


Layout = Mapping[str, Place]
"""Name → place: what the host writes before and reads after a run."""


class OuterMemory:
    """Hands out addresses and holds what lies there at first. What has no content is zero."""

    def __init__(self, engine: IntegerEngine) -> None:
        self.engine = engine
        self.size = 0
        self._parts: list[tuple[int, Bytes]] = []

    def reserve(self, size: int) -> int:
        """The address of `size` bytes, a multiple of the bus word, or of `PAGE` for what is as large.

        Raises:
            SettingError: addresses have 32 bits.
        """
        word = self.engine.bus_bytes
        align = max(word, PAGE if size >= PAGE else word)
        address = -(-self.size // align) * align
        self.size = -(-(address + size) // word) * word
        if self.size > 1 << 32:
            raise SettingError(f"the outer memory needs {self.size} bytes; addresses have 32 bits")
        return address

    def put(self, data: NDArray[np.generic]) -> int:
        """The address at which `data` lies."""
        content = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        address = self.reserve(content.size)
        self._parts.append((address, content))
        return address

    def fill(self, address: int, data: NDArray[np.generic]) -> None:
        """Content for a reserved address."""
        self._parts.append((address, np.ascontiguousarray(data).view(np.uint8).reshape(-1)))

    def rows(self, rows: int, columns: int, bits: int, values: NDArray[np.integer] | None = None) -> Place:
        """A place of `rows`, each padded to whole bus words (and chunks), filled with `values` where given."""
        word = max(self.engine.bus_bytes, self.engine.depth)
        pitch = -(-columns * bits // 8 // word) * word
        place = Place(self.reserve(rows * pitch), rows, columns, bits, pitch)
        if values is not None:
            padded = np.zeros((rows, pitch), np.uint8)
            padded[:, : columns * bits // 8] = np.ascontiguousarray(
                values.astype("<i2" if bits == 16 else np.int8)
            ).view(np.uint8)
            self.fill(place.address, padded)
        return place

    def image(self) -> Bytes:
        """The whole memory before the first run."""
        memory = np.zeros(self.size, np.uint8)
        for address, content in self._parts:
            memory[address : address + content.size] = content
        return memory
