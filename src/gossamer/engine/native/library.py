"""The compiled library: built once for a version of its sources, loaded, and asked to run programs."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

from gossamer.core.errors import DataError, DeviceError
from gossamer.engine.native import abi

SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-w")
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_AVX512 = (*_AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")), "-mprefer-vector-width=512")
_BF16 = (*_AVX512, "-mavx512bf16", "-mavx512vbmi")
_UNITS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": _AVX2,
        "avx512": _AVX512,
        "bf16": _BF16,
        "amx": (*_BF16, "-mamx-tile", "-mamx-bf16"),
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
"""By kind of machine: the sources that only it compiles, and their flags."""
_EVERYWHERE = ("engine", "pool", "generic")
_SAME_MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}
_NO_ROW = 2
"""What `gossamer_run` says of such a token."""


@cache
def library() -> ctypes.CDLL:
    """The library, compiled if this version of it has not been. Raises `DeviceError` without a C++ compiler, or if it
    fails."""
    loaded = ctypes.CDLL(str(build()))
    loaded.gossamer_isas.restype = ctypes.c_char_p
    loaded.gossamer_new.restype = ctypes.c_void_p
    loaded.gossamer_new.argtypes = [ctypes.c_char_p, ctypes.c_int]
    loaded.gossamer_delete.argtypes = [ctypes.c_void_p]
    loaded.gossamer_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    loaded.gossamer_sweep.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    loaded.gossamer_sweep.restype = ctypes.c_float
    sizes = (ctypes.c_int64 * 3)()
    loaded.gossamer_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in (abi.Matrix, abi.Op, abi.Call)], "abi.py is not abi.h"
    return loaded


def isas() -> list[str]:
    """The kinds of processor code that run here, best first: of amx, bf16, avx512, avx2, neon, generic."""
    names: bytes = library().gossamer_isas()
    return names.decode().split()


def build() -> Path:
    """Compiles the library into the user's cache, unless it is there. Returns its file. Raises as `library` does."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    digest = hashlib.sha256(platform.machine().encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    digest.update(repr((_FLAGS, _UNITS)).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer"
    target = folder / f"native-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    if compiler is None:
        raise DeviceError("the native engine needs a C++ compiler to be built once: install g++ or clang++")
    if sys.stderr.isatty():
        print("compiling the native engine, once for this version: about half a minute", file=sys.stderr, flush=True)
    compile_library(compiler, target, platform.machine())
    return target


def compile_library(compiler: str, target: Path, machine: str) -> None:
    """Compiles the sources for a kind of machine, as `platform.machine` names it: others get the portable code alone.
    Raises `DeviceError` if the compiler fails or `target` cannot be written."""
    units = dict.fromkeys(_EVERYWHERE, ()) | _UNITS.get(_SAME_MACHINE.get(machine, machine), {})
    beside = target.with_suffix(f".{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        jobs = []
        for unit, flags in units.items():
            command = [compiler, *_FLAGS, *flags, "-c", str(SOURCES / f"{unit}.cpp"), "-o", str(beside / f"{unit}.o")]
            jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        said = [job.communicate()[1] for job in jobs]
        if not any(job.returncode for job in jobs):
            objects = sorted(str(file) for file in beside.glob("*.o"))
            link = [compiler, "-shared", "-o", str(beside / "library.so"), *objects, "-pthread"]
            job = subprocess.run(link, stderr=subprocess.PIPE, text=True, check=False)
            said.append(job.stderr)
            if job.returncode == 0:
                (beside / "library.so").rename(target)
                return
        line = next((line for text in said for line in text.splitlines() if "error" in line), "".join(said)[:200])
        raise DeviceError(f"the native engine could not be compiled with {compiler}: {line}")
    except OSError as error:
        raise DeviceError(f"the native engine could not be built in {target.parent}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@cache
def shared_engine(threads: int) -> "Engine":
    """The engine of this process with so many threads: those of a second one would want the same cores."""
    return Engine(threads)


class Engine:
    """Threads and memory in which programs run, one at a time. `isa` is one of `isas()`, the best by default."""

    def __init__(self, threads: int, isa: str | None = None) -> None:
        self.isa = isa or isas()[0]
        self.threads = threads
        self._turn = threading.Lock()
        self._delete = library().gossamer_delete  # kept: at the program's end modules go before objects do
        self._handle = library().gossamer_new(self.isa.encode(), threads)
        if not self._handle:
            raise DeviceError(f"this processor does not run {self.isa!r} code: it runs {', '.join(isas())}")

    def run(self, ops: "ctypes.Array[abi.Op]", call: abi.Call) -> None:
        """Runs the steps over the call's rows. Raises `DeviceError` where memory is short, `DataError` for a token that
        the embedding has no row for."""
        with self._turn:
            failed = library().gossamer_run(self._handle, ctypes.addressof(ops), len(ops), ctypes.addressof(call))
        if failed == _NO_ROW:
            raise DataError("a token is not in the model's table: give ids below the size of its embedding")
        if failed:
            raise DeviceError(f"there is not enough memory to compute {call.rows} tokens at once: read fewer together")

    def bandwidth(self, size: int) -> float:
        """Bytes per second at which all threads together read `size` bytes of memory, as a product reads its weights:
        the best of some sweeps. What lies in caches is read from there."""
        import torch

        memory = torch.ones(max(size, 256), dtype=torch.uint8)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            library().gossamer_sweep(self._handle, memory.data_ptr(), memory.nbytes)
            times.append(time.perf_counter() - start)
        return memory.nbytes / min(times)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._delete(self._handle)
