"""The integer engine's shape: what it is built with, from which its memories' widths follow."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNITS = ("load", "store", "compute")
"""What works side by side in the engine; a `Fence` waits for some of them."""
REGISTERS = 8
"""Registers that the host sets and steps add to addresses and lengths; register 0 reads as zero."""


SCORE_TILES = 32
"""Row tiles of scores that one step takes, at most."""


class IntegerEngine(BaseModel):
    """An integer engine: `rows` × `columns` accumulators, each fed by a dot product of `depth` bytes a cycle.

    The unified memory is a stack of **lines**. A line holds `line_rows` = max(rows, columns) rows of one **chunk**
    (`depth` bytes). Lines lie in `banks` single-port banks of `bank_lines` lines; the software places tensors so that
    what works in the same cycle lies in different banks.

    Raises:
        ValueError (pydantic's): a number that is no power of two or out of its range, or widths that do not fit
            each other; the message says which.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(8, ge=2, le=64, description="Rows of the array: tokens at once.")
    columns: int = Field(8, ge=2, le=64, description="Columns of the array: outputs at once.")
    depth: int = Field(8, ge=2, le=64, description="Bytes of a chunk: products summed by one cell in a cycle.")
    lanes: int = Field(4, ge=1, le=32, description="Columns drained in a cycle by each row; elements in a norm.")
    norm_rows: int = Field(8, ge=1, le=64, description="Rows that a norm treats at once.")
    four_bit: bool = Field(True, description="Cells can be split into two of 4-bit weights.")
    banks: int = Field(8, ge=4, le=64)
    bank_lines: int = Field(1024, ge=16, le=1 << 20)
    bus_bytes: int = Field(16, ge=4, le=128, description="Width of the memory port.")
    parameters: int = Field(4096, ge=64, le=1 << 20, description="Entries of 8 bytes: bias, multiplier, shift.")
    groups: int = Field(1024, ge=16, le=1 << 20, description="Words of 4-bit group multipliers, one for a column tile.")
    tables: int = Field(4, ge=1, le=16, description="Tables of 256 bytes.")
    chunks: int = Field(256, ge=16, le=1 << 16, description="Longest row of scores, in chunks.")
    instructions: int = Field(1024, ge=64, le=1 << 20, description="Steps held on chip.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name not in ("four_bit", "tables") and value & (value - 1):
                below = 1 << value.bit_length() - 1
                raise ValueError(f"{name} is {value}; a power of two is needed, such as {below} or {2 * below}")
        if 2 * self.lanes > self.depth:
            raise ValueError(
                f"lanes is {self.lanes}; at most half of depth, {self.depth // 2}, can be written in a cycle"
            )
        if self.lanes > self.columns:
            raise ValueError(f"lanes is {self.lanes}; the array has only {self.columns} columns")
        if self.depth > self.columns:
            raise ValueError(f"depth is {self.depth}; a tile of {self.columns} columns must fill whole chunks")
        if self.norm_rows > self.line_rows:
            raise ValueError(f"norm_rows is {self.norm_rows}; a line has {self.line_rows} rows")
        if self.bus_bytes > self.line_bytes:
            raise ValueError(f"bus_bytes is {self.bus_bytes}; a line has {self.line_bytes} bytes")
        if self.depth > self.bus_bytes:
            raise ValueError(f"depth is {self.depth}; a chunk must fit the bus of {self.bus_bytes} bytes")
        return self

    @property
    def line_rows(self) -> int:
        """Rows of a line."""
        return max(self.rows, self.columns)

    @property
    def line_bytes(self) -> int:
        return self.line_rows * self.depth

    @property
    def lines(self) -> int:
        """Lines of the whole unified memory."""
        return self.banks * self.bank_lines

    @property
    def sram_bytes(self) -> int:
        return self.lines * self.line_bytes

    @property
    def multipliers(self) -> int:
        """8-bit multiply-accumulates a cycle."""
        return self.rows * self.columns * self.depth
