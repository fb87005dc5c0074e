"""The native engine compiled for ARM and run by QEMU, where `make tools` has installed both."""

import ctypes
import gc
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from gossamer.engine.native import abi
from gossamer.engine.native.library import SOURCES, compile_library

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
AT_HAND = shutil.which(COMPILER) is not None and shutil.which(EMULATOR) is not None


@cache
def program() -> "tempfile.TemporaryDirectory[str]":
    """The folder with the library and the program that calls it, until the tests end."""
    held = tempfile.TemporaryDirectory(prefix="gossamer-arm-")
    folder = Path(held.name)
    compile_library(COMPILER, folder / "libgossamer.so", "aarch64")
    source = str(Path(__file__).with_suffix(".cpp"))
    command = [COMPILER, "-std=c++17", "-O1", f"-I{SOURCES}", source, "-o", str(folder / "run")]
    subprocess.run([*command, f"-L{folder}", "-lgossamer", f"-Wl,-rpath,{folder}"], check=True)
    return held


class Emulated:
    """What `Engine` is, on an emulated ARM: all memory that the structs point to goes there and comes back."""

    def __init__(self, threads: int, isa: str) -> None:
        self.threads, self.isa = threads, isa

    def run(self, ops: "ctypes.Array[abi.Op]", call: abi.Call) -> None:
        """As `Engine.run`. Raises `RuntimeError` with the exit status where that fails."""
        parcel = _Parcel()
        moved = _moved(ops, parcel)
        sent = abi.Call.from_buffer_copy(call)
        layers = 1 + max(op.layer for op in ops)
        for name in ("tokens", "slots", "places", "until"):
            setattr(sent, name, parcel.place(getattr(call, name)))
        for name in ("cosines", "sines"):
            setattr(sent, name, type(call.cosines)(*map(parcel.place, getattr(call, name))))
        for buffer in sent.buffers:
            buffer.data = parcel.place(buffer.data)
        for name in ("keys", "values"):
            if getattr(call, name):
                caches = (ctypes.c_void_p * layers).from_address(getattr(call, name))
                setattr(sent, name, parcel.add(bytes((ctypes.c_void_p * layers)(*map(parcel.place, caches)))))
        with tempfile.NamedTemporaryFile() as file:
            head = bytes((ctypes.c_int64 * 3)(len(ops), layers, len(parcel.bytes))) + bytes(moved) + bytes(sent)
            file.write(head + parcel.bytes)
            file.flush()
            command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", f"{program().name}/run", self.isa, str(self.threads)]
            status = subprocess.run([*command, file.name], check=False).returncode
            if status:
                raise RuntimeError(f"the emulated engine ended with {status}")
            parcel.unpack(Path(file.name).read_bytes()[len(head) :])


def _moved(ops: "ctypes.Array[abi.Op]", parcel: "_Parcel") -> "ctypes.Array[abi.Op]":
    """The steps with all that they point to in the parcel."""
    moved = type(ops).from_buffer_copy(ops)
    for op in moved:
        op.weight = parcel.place(op.weight)
        op.biases = type(op.biases)(*map(parcel.place, op.biases))
        for matrix in op.matrices:
            for name in ("codes", "scales", "zeros", "least"):
                setattr(matrix, name, parcel.place(getattr(matrix, name)))
        if op.inner:
            op.inner = parcel.add(bytes(_moved((abi.Op * (2 * op.count)).from_address(op.inner), parcel)))
    return moved


class _Parcel:
    """Tensors' memory, one behind the other. Which tensor a pointer points into is asked of the garbage collector."""

    def __init__(self) -> None:
        tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        storages = [each.untyped_storage() for each in tensors if each.device.type == "cpu"]
        self._known = {each.data_ptr(): each.nbytes() for each in storages if each.nbytes()}
        self._placed: dict[int, int] = {}
        self.bytes = bytearray()

    def place(self, pointer: int | None) -> int | None:
        """Where what it points to lies in the parcel, from 1 on."""
        if not pointer:
            return None
        start = next(start for start, size in self._known.items() if start <= pointer < start + size)
        if start not in self._placed:
            self._placed[start] = self.add(ctypes.string_at(start, self._known[start]))
        return self._placed[start] + pointer - start

    def add(self, content: bytes) -> int:
        """Puts it behind the others, at a multiple of 64 bytes."""
        self.bytes += bytes(-len(self.bytes) % 64)
        self.bytes += content
        return len(self.bytes) - len(content) + 1

    def unpack(self, content: bytes) -> None:
        """Brings what was placed back to where it came from."""
        for start, place in self._placed.items():
            ctypes.memmove(start, content[place - 1 : place - 1 + self._known[start]], self._known[start])
