"""A design as an object: set its inputs, clock it, read its outputs, one by one or in long columns."""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.core.errors import SettingError
from gossamer.eda.compiling import DRIVERS, Port, build, ports
from gossamer.eda.design import Design
from gossamer.eda.tools import ToolError


class Model:
    """The design compiled by Verilator into this process, all its inputs 0 and settled.

    `clock` names the clock input, None for logic without one. Registers that are not reset start at 0, or at random
    bits from a `seed` > 0, which shows what relies on them. Delays in the Verilog are ignored.
    Raises as `compiling.build` and `ports` do, and `SettingError` for a clock that the design has not.
    """

    def __init__(self, design: Design, clock: str | None = "clk", seed: int = 0, optimise: int = 2) -> None:
        compiled = build(design, DRIVERS / "model.cpp", optimise, library=True)
        self.ports: Mapping[str, Port] = ports(compiled)
        self._index = {name: index for index, name in enumerate(self.ports)}
        if clock is not None and not (clock in self.ports and self.ports[clock].input and self.ports[clock].width == 1):
            raise SettingError(f"{design.top} has no clock input {clock!r}: its ports are {', '.join(self.ports)}")
        self._top = design.top
        self._clock = -1 if clock is None else self._index[clock]
        self._library, self._handle = _open(compiled, seed)
        self._free = self._library.gossamer_free  # kept: at the program's end modules go before objects do
        self._check(self._library.gossamer_eval(self._handle))

    def set(self, name: str, value: int) -> None:
        """Gives an input a value: unsigned, or signed in two's complement. Takes effect with `eval` or `clock`.
        Raises `SettingError` for a value that the port has no bits for."""
        port = self._port(name, input=True)
        if not -(1 << (port.width - 1)) <= value < 1 << port.width:
            raise SettingError(f"{value} does not fit into the {port.width} bits of {name}")
        row = (value % (1 << port.width)).to_bytes(_stride(port), "little")
        self._library.gossamer_set(self._handle, self._index[name], row)

    def get(self, name: str, signed: bool = False) -> int:
        """The value of a port."""
        port = self._port(name)
        row = ctypes.create_string_buffer(_stride(port))
        self._library.gossamer_get(self._handle, self._index[name], row)
        value = int.from_bytes(row.raw, "little")
        return value - (1 << port.width) if signed and value >> (port.width - 1) else value

    def eval(self) -> None:
        """Lets everything settle. Raises `ToolError` where the design stops: `$fatal`, `$stop`, a loop in its logic."""
        self._check(self._library.gossamer_eval(self._handle))

    def clock(self, cycles: int = 1) -> None:
        """So many rising and falling edges of the clock. Raises as `eval`."""
        if self._clock < 0:
            raise SettingError(f"{self._top} was opened without a clock")
        self._check(self._library.gossamer_clock(self._handle, self._clock, cycles))

    def run(self, inputs: Mapping[str, ArrayLike], outputs: Sequence[str]) -> dict[str, NDArray[np.unsignedinteger]]:
        """Many cycles in one call. Columns of inputs in, columns of outputs out.

        `inputs` gives whole numbers (rows,) for a port of up to 64 bits, unsigned or signed, and uint32 words
        (rows, words), lowest first, for a wider one; inputs not named keep their value. In each row the inputs are set,
        everything settles, the outputs are taken, and then the clock rises and falls: row t holds what the world sees
        at the rising edge that ends cycle t. Returns uint64 (rows,) or uint32 (rows, words); see `as_signed`.

        Raises `SettingError` for columns of another shape or values that do not fit, and as `eval`.
        """
        columns = {name: _column(self._port(name, input=True), np.asarray(given)) for name, given in inputs.items()}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1:
            raise SettingError(
                f"the columns of inputs have lengths {sorted(lengths)}: give at least one, all of one length"
            )
        rows = lengths.pop()
        wanted = {name: _empty(self._port(name), rows) for name in outputs}
        self._check(
            self._library.gossamer_run(self._handle, self._clock, rows, *self._table(columns), *self._table(wanted))
        )
        return wanted

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._free(handle)

    def _table(self, columns: Mapping[str, NDArray[np.unsignedinteger]]) -> tuple[int, object, object]:
        count = len(columns)
        places = (ctypes.c_void_p * count)(*(column.ctypes.data for column in columns.values()))
        return count, (ctypes.c_int * count)(*(self._index[name] for name in columns)), places

    def _port(self, name: str, input: bool = False) -> Port:
        port = self.ports.get(name)
        if port is None or (input and not port.input):
            fitting = [each.name for each in self.ports.values() if each.input or not input]
            raise SettingError(
                f"{self._top} has no {'input' if input else 'port'} {name!r}: it has {', '.join(fitting)}"
            )
        return port

    def _check(self, failed: int) -> None:
        if failed:
            said = self._library.gossamer_error(self._handle).decode()
            raise ToolError(f"{self._top} stopped at {said}")


def as_signed(values: NDArray[np.uint64], width: int) -> NDArray[np.int64]:
    """Two's complement numbers of `width` bits (1 to 64) that a column holds as unsigned ones."""
    spare = 64 - width
    return (values << np.uint64(spare)).view(np.int64) >> np.int64(spare)


def _stride(port: Port) -> int:
    return port.words * 4 or 8


def _empty(port: Port, rows: int) -> NDArray[np.unsignedinteger]:
    return np.zeros((rows, port.words), np.uint32) if port.words else np.zeros(rows, np.uint64)


def _column(port: Port, given: NDArray[np.generic]) -> NDArray[np.unsignedinteger]:
    if port.words:
        if given.dtype != np.uint32 or given.ndim != 2 or given.shape[1] != port.words:
            raise SettingError(f"{port.name} has {port.width} bits: give uint32 words (rows, {port.words})")
        return np.ascontiguousarray(given)
    if given.ndim != 1 or given.dtype.kind not in "iub":
        raise SettingError(f"{port.name}: give a column of whole numbers (rows,), not {given.dtype} {given.shape}")
    if given.size:
        low, high = int(given.min()), int(given.max())
        if low < -(1 << (port.width - 1)) or high >= 1 << port.width:
            raise SettingError(f"{port.name} has {port.width} bits, which {low} to {high} do not fit")
    return np.ascontiguousarray(given.astype(np.int64) if given.dtype.kind == "i" else given.astype(np.uint64)).view(
        np.uint64
    )


def _open(compiled: Path, seed: int) -> tuple[ctypes.CDLL, int]:
    """The library, and a new model of it."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    opening = ctypes.PyDLL(str(compiled)).gossamer_new  # PyDLL: no other thread of Python runs while it is elsewhere
    opening.argtypes, opening.restype = [number, ctypes.c_char_p], pointer
    library = ctypes.CDLL(str(compiled))
    library.gossamer_free.argtypes, library.gossamer_free.restype = [pointer], None
    library.gossamer_error.argtypes, library.gossamer_error.restype = [pointer], ctypes.c_char_p
    library.gossamer_set.argtypes, library.gossamer_set.restype = [pointer, number, ctypes.c_char_p], None
    library.gossamer_get.argtypes, library.gossamer_get.restype = [pointer, number, pointer], None
    library.gossamer_eval.argtypes = [pointer]
    library.gossamer_clock.argtypes = [pointer, number, ctypes.c_int64]
    columns = (number, pointer, pointer)
    library.gossamer_run.argtypes = [pointer, number, ctypes.c_int64, *columns, *columns]
    return library, opening(seed, os.fsencode(compiled.parent))
