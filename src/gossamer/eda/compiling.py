"""A design compiled by Verilator and the C++ compiler, with what drives it, into a program or a library."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gossamer.core.errors import SettingError
from gossamer.core.files import file_digest
from gossamer.eda import tools
from gossamer.eda.cache import built
from gossamer.eda.design import Design

DRIVERS = Path(__file__).parent / "src"
_SECONDS = 3600.0
_CHUNK = 400_000
"""Sources are compiled together up to so many bytes: each unit reads Verilator's large headers anew."""
_FLAGS = (
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-w",
    "-pthread",
    "-DVERILATOR=1",
    "-DVM_TIMING=1",
    "-DVM_COVERAGE=0",
    "-DVM_SC=0",
)
_STOPS = ("-DVL_USER_FATAL", "-DVL_USER_FINISH")
_PORT = re.compile(r"VL_(?P<kind>IN|OUT|INOUT)(?:8|16|64|W)?\((?P<what>[^,]+),(?P<high>\d+),(?P<low>\d+)[,)]")
_ESCAPED = re.compile(r"__0([0-9A-F]{2})")


@dataclass(frozen=True)
class Port:
    """A port of the top module, `width` bits wide; `member` is its name in C++."""

    name: str
    width: int
    input: bool
    member: str

    @property
    def words(self) -> int:
        """32-bit words of a port that is wider than 64 bits; 0 for others."""
        return -(-self.width // 32) if self.width > 64 else 0


def build(design: Design, driver: Path, optimise: int = 2, library: bool = False, timing: bool = False) -> Path:
    """Compiles the design with a C++ driver that includes `Vtop.h` (class `Vtop`) into a program, or a shared library.

    `optimise` is the compiler's level (0 to 3); `timing` lets the Verilog hold delays and event waits, as test benches
    do. Registers that are not reset start as the driver's context says (`randReset`; 0 by default). The driver may
    include headers that are among the design's sources; others the cache does not know of.

    A library's functions are hidden unless the driver gives them `visibility("default")`: models in one process share
    no symbols.

    Returns the file in the user's cache, which lies there already if the same was built before. Beside it are the
    design's files: a program that reads some by bare name (`$readmemh`) is to be run in that folder. `$stop`, `$fatal`
    and loops that do not settle end a program with status 1. Raises `SettingError` for a driver that is not there,
    `ToolError` where a tool is missing, and with the first error where the design or driver does not compile.
    """
    if not driver.is_file():
        raise SettingError(f"there is no driver {driver}: give a C++ source that includes Vtop.h")
    if optimise not in range(4):
        raise SettingError(f"optimise is {optimise}: give the compiler's level, 0 to 3")
    verilator, compiler = tools.find("verilator"), tools.find("compiler")
    file = "library.so" if library else "program"
    text = driver.read_text(encoding="utf-8")
    said = (design.key, text, optimise, library, timing)

    def make(folder: Path) -> None:
        design.place(folder)
        generated = folder / "generated"
        delays = "--timing" if timing else "--no-timing"
        settings = ["-O3", "--x-assign", "fast", "--x-initial", "unique", "-Wno-fatal"]
        arguments = ["--cc", "--prefix", "Vtop", "--Mdir", "generated", delays, *settings, *design.verilator()]
        tools.run(verilator, arguments, folder, _SECONDS, design.names)
        if "ports.inc" in text:
            table = "".join(f"PORT({port.member}, {port.width})\n" for port in _ports(generated))
            (generated / "ports.inc").write_text(table, encoding="utf-8")
        sources = sorted(generated.glob("Vtop*.cpp"))
        small = sum(source.stat().st_size for source in sources) <= _CHUNK
        slow = [] if small else [source for source in sources if source.stem.endswith("__Slow")]
        fast = [source for source in sources if source not in slow]
        (generated / driver.name).write_text(text, encoding="utf-8")
        own = [generated / driver.name]
        jobs = _units(generated, "unit_slow", slow, 0)  # is run once, at the start
        jobs += _units(generated, "unit_fast", [*fast, *(own if small else [])], optimise)
        jobs += [] if small else _units(generated, "unit_driver", own, optimise)
        objects = _compile(generated, jobs, ("-I..",), {driver.name: str(driver)})
        shared = ["-shared"] if library else []
        runtime = [str(path) for path in sorted(_runtime().glob("*.o"))]
        tools.run(compiler, [*_FLAGS, *shared, "-o", f"../{file}", *objects, *runtime], generated, _SECONDS)
        for path in generated.iterdir():
            if path.name != "Vtop.h":
                path.unlink()

    return built("simulation", (*said, verilator.version, compiler.version, file_digest(Path(__file__))), make) / file


def ports(compiled: Path) -> dict[str, Port]:
    """The top module's ports, by name, of what `build` returned. Raises `SettingError` for inout and array ports."""
    return {port.name: port for port in _ports(compiled.parent / "generated")}


def _ports(generated: Path) -> Iterator[Port]:
    for match in _PORT.finditer((generated / "Vtop.h").read_text(encoding="utf-8")):
        member = match["what"].strip().removeprefix("&")
        name = _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), member)
        if match["kind"] == "INOUT" or not member.isidentifier():
            raise SettingError(f"port {name} of the top module is an inout or an array: make it a vector, in or out")
        yield Port(name, abs(int(match["high"]) - int(match["low"])) + 1, match["kind"] == "IN", member)


def _units(folder: Path, name: str, sources: Sequence[Path], optimise: int) -> list[tuple[str, int]]:
    """Writes files that include the sources in turn. Returns their names, each with its level of optimisation."""
    chunks: list[list[Path]] = []
    size = _CHUNK
    for source in sources:
        size += source.stat().st_size
        if size > _CHUNK:
            chunks.append([])
            size = source.stat().st_size
        chunks[-1].append(source)
    for index, chunk in enumerate(chunks):
        text = "".join(f'#include "{source.name}"\n' for source in chunk)
        (folder / f"{name}{index}.cpp").write_text(text, encoding="utf-8")
    return [(f"{name}{index}.cpp", optimise) for index in range(len(chunks))]


def _runtime() -> Path:
    """Verilator's own library, compiled once for all designs."""
    verilator, compiler = tools.find("verilator"), tools.find("compiler")
    stops = DRIVERS / "stops.cpp"

    def make(folder: Path) -> None:
        sources = Path(verilator.environment["VERILATOR_ROOT"]) / "include"
        jobs = [(str(sources / f"verilated{part}.cpp"), 2) for part in ("", "_threads", "_timing")]
        _compile(folder, [*jobs, (str(stops), 2)], _STOPS)

    return built("runtime", (verilator.version, compiler.version, _FLAGS, stops.read_text(encoding="utf-8")), make)


def _compile(
    folder: Path, jobs: Sequence[tuple[str, int]], flags: Sequence[str], names: dict[str, str] | None = None
) -> list[str]:
    """Compiles sources, each at its level, side by side. Returns the names of the objects."""
    compiler, root = tools.find("compiler"), tools.find("verilator").environment["VERILATOR_ROOT"]
    include = ["-I.", f"-I{root}/include", f"-I{root}/include/vltstd", *flags]

    def one(job: tuple[str, int]) -> str:
        source, level = job
        target = f"{Path(source).stem}.o"
        tools.run(compiler, [*_FLAGS, f"-O{level}", *include, "-c", source, "-o", target], folder, _SECONDS, names)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, jobs))
