"""The engine's RTL, compiled by Verilator, running programs on an outer memory that is a NumPy array."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator.isa import BYTES
from gossamer.core.errors import GossamerError, SettingError
from gossamer.dataflow.bursts import Bursts
from gossamer.dataflow.cycles.transfer import READ_LATENCY, WRITE_LATENCY
from gossamer.dataflow.engine import REGISTERS, UNITS, IntegerEngine
from gossamer.dataflow.mapping import AddressMap
from gossamer.eda.compiling import build
from gossamer.eda.design import Design

RTL = Path(__file__).parent / "rtl"
DRIVER = Path(__file__).parent / "driver" / "engine.cpp"
PORTS = ("a", "w", "x", "store", "out", "load")
"""Ports of the unified memory, in the order of the bits of a conflict."""


class Register(IntEnum):
    """Byte addresses of the control registers (`rtl/gs_control.v`). Counters are 64 bits, low word first."""

    CONTROL = 0x00
    STATUS = 0x04
    PROGRAM_ADDRESS = 0x08
    PROGRAM_COUNT = 0x0C
    REGISTERS = 0x20
    CYCLES = 0x40
    LOAD_BUSY = 0x48
    STORE_BUSY = 0x50
    COMPUTE_BUSY = 0x58
    BEATS_READ = 0x60
    BEATS_WRITTEN = 0x68


class EngineError(GossamerError):
    """A program that the engine stops at, or that breaks a rule: two ports in one bank, a line or an address that does
    not exist, an unknown opcode, too many cycles."""


@dataclass(frozen=True)
class Run:
    """What the engine counted, from the fetch of the first instruction to End: cycles, cycles in which each unit was
    busy, bus words read and written (the program's own loading is not among them). `bursts`, where they were recorded,
    are all requests of the AXI4 port in order, that loading included, each in the cycle in which it was taken."""

    cycles: int
    busy: Mapping[str, int]
    beats_read: int
    beats_written: int
    bursts: Bursts | None = None


def sources() -> list[Path]:
    """All files of the RTL."""
    return sorted([*RTL.glob("*.v"), *RTL.glob("*.vh")])


def parameters(engine: IntegerEngine) -> dict[str, int]:
    """The engine's numbers as parameters of `gs_top`."""
    return {name.upper(): int(value) for name, value in engine.model_dump().items()}


class Simulation:
    """An engine at work. What its memories hold stays from run to run.

    `read_latency` is the number of cycles from a burst's address to its first word, `write_latency` from a burst's last
    word to its answer (both ≥ 1); `stalls` the probability with which each side of a handshake waits in a cycle. With a
    `seed` > 0 all that is not reset starts at random bits. `rtl` replaces the Verilog files (tests);
    `mapping` says where the memory has what a program's addresses name.

    Raises `SettingError` for settings out of range, and what `eda.build` raises.
    """

    def __init__(
        self,
        engine: IntegerEngine,
        read_latency: int = READ_LATENCY,
        write_latency: int = WRITE_LATENCY,
        stalls: float = 0.0,
        seed: int = 0,
        rtl: Sequence[Path] | None = None,
        mapping: AddressMap | None = None,
    ) -> None:
        if min(read_latency, write_latency) < 1:
            raise SettingError(f"latencies are {read_latency} and {write_latency}; at least 1 cycle each")
        if not 0 <= stalls < 1:
            raise SettingError(f"stalls is {stalls}; a probability below 1 is needed")
        self.engine = engine
        numbers = parameters(engine) | (mapping or AddressMap()).parameters()
        self._library = _library(build(Design(rtl or sources(), "gs_top", numbers), DRIVER, library=True))
        self._free = self._library.gossamer_free  # kept: at the program's end modules go before objects do
        self._handle = self._library.gossamer_new(read_latency, write_latency, stalls, seed)

    def run(
        self,
        memory: NDArray[np.uint8],
        program: int,
        count: int,
        registers: Sequence[int] = (),
        limit_cycles: int = 100_000_000,
        record: bool = False,
    ) -> Run:
        """Runs the `count` instructions at address `program` of the outer memory, which is read and written in place.

        Args:
            memory: the outer memory, uint8 (bytes,), contiguous; address 0 is its first byte.
            program: byte address, a multiple of the bus word.
            count: instructions; later ones than the ring holds are to be loaded by the program.
            registers: R[1], R[2], …: 32 bits each; those not given are 0.
            limit_cycles: clock cycles after which it is given up.
            record: keep every burst, too.

        Raises:
            SettingError: arguments that are out of range.
            EngineError: see there. After a broken bus rule the simulation cannot be used any more.
        """
        self._check_arguments(memory, program, count, registers)
        self._library.gossamer_memory(self._handle, memory.ctypes.data, memory.nbytes)
        for index in range(1, REGISTERS):
            value = registers[index - 1] if index <= len(registers) else 0
            self._write(Register.REGISTERS + 4 * index, value % (1 << 32))
        self._write(Register.PROGRAM_ADDRESS, program)
        self._write(Register.PROGRAM_COUNT, count)
        self._library.gossamer_record(self._handle, record)
        self._write(Register.CONTROL, 1)
        ended = ctypes.c_int()
        self._check(self._library.gossamer_wait(self._handle, limit_cycles, ctypes.byref(ended)))
        if not ended.value:
            raise EngineError(f"the program has not ended after {limit_cycles} cycles: is there an End in it?")
        self._check_status(self.read(Register.STATUS))
        busy = (Register.LOAD_BUSY, Register.STORE_BUSY, Register.COMPUTE_BUSY)
        return Run(
            self._counter(Register.CYCLES),
            {unit: self._counter(register) for unit, register in zip(UNITS, busy, strict=True)},
            self._counter(Register.BEATS_READ),
            self._counter(Register.BEATS_WRITTEN),
            self._recorded() if record else None,
        )

    def _recorded(self) -> Bursts:
        first = ctypes.POINTER(ctypes.c_int64)()
        count = self._library.gossamer_recorded(self._handle, ctypes.byref(first))
        flat = np.ctypeslib.as_array(first, (count,)).copy() if count else np.zeros(0, np.int64)
        numbers = flat.reshape(-1, 4)
        return Bursts(numbers[:, 1], numbers[:, 2], numbers[:, 3].astype(bool), numbers[:, 0])

    def read(self, register: int) -> int:
        """A control register, by its byte address."""
        data = ctypes.c_uint32()
        self._check(self._library.gossamer_read(self._handle, register, ctypes.byref(data)))
        return data.value

    def _counter(self, register: int) -> int:
        return self.read(register) | self.read(register + 4) << 32

    def _write(self, register: int, value: int) -> None:
        self._check(self._library.gossamer_write(self._handle, register, value))

    def _check(self, failed: int) -> None:
        if failed:
            raise EngineError(f"simulation: {self._library.gossamer_error(self._handle).decode()}")

    def _check_status(self, status: int) -> None:
        code, detail = status >> 8 & 0xFF, status >> 16 & 0xFF
        ports = " and ".join(name for bit, name in enumerate(PORTS) if detail >> bit & 1)
        said = {
            0: "",
            1: f"ports {ports} met in one bank of the unified memory",
            2: f"port {ports} used a line that does not exist: there are {self.engine.lines}",
            3: "the outer memory answered with an error",
            4: f"opcode {detail} is unknown",
        }[code]
        if said:
            raise EngineError(f"the engine stopped with an error: {said}")

    def _check_arguments(self, memory: NDArray[np.uint8], program: int, count: int, registers: Sequence[int]) -> None:
        if memory.dtype != np.uint8 or memory.ndim != 1 or not memory.flags.c_contiguous or not memory.flags.writeable:
            raise SettingError("the outer memory must be a writable, contiguous uint8 array (bytes,)")
        if not 1 <= count <= self.engine.instructions:
            raise SettingError(f"{count} instructions; the engine starts with 1 … {self.engine.instructions}")
        if program % self.engine.bus_bytes or not 0 <= program <= memory.nbytes - BYTES * count:
            raise SettingError(
                f"a program of {count} instructions at {program}: a multiple of {self.engine.bus_bytes} inside the "
                f"{memory.nbytes} bytes of the outer memory is needed"
            )
        if len(registers) >= REGISTERS:
            raise SettingError(f"{len(registers)} registers given; a program has {REGISTERS - 1}")
        for value in registers:
            if not -(1 << 31) <= value < 1 << 32:
                raise SettingError(f"register value {value}; 32 bits are needed")

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._free(handle)


def _library(path: Path) -> Any:
    pointer, number, word = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
    library = ctypes.CDLL(str(path))
    library.gossamer_new.argtypes = [number, number, ctypes.c_double, ctypes.c_uint64]
    library.gossamer_new.restype = pointer
    library.gossamer_free.argtypes, library.gossamer_free.restype = [pointer], None
    library.gossamer_error.argtypes, library.gossamer_error.restype = [pointer], ctypes.c_char_p
    library.gossamer_memory.argtypes, library.gossamer_memory.restype = [pointer, pointer, ctypes.c_uint64], None
    library.gossamer_write.argtypes = [pointer, word, word]
    library.gossamer_read.argtypes = [pointer, word, pointer]
    library.gossamer_record.argtypes, library.gossamer_record.restype = [pointer, number], None
    library.gossamer_recorded.argtypes = [pointer, pointer]
    library.gossamer_recorded.restype = ctypes.c_uint64
    library.gossamer_wait.argtypes = [pointer, ctypes.c_uint64, pointer]
    return library
