"""A test bench in Verilog run to its `$finish`."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gossamer.core.errors import SettingError
from gossamer.eda import tools
from gossamer.eda.cache import built
from gossamer.eda.compiling import DRIVERS, build
from gossamer.eda.design import Design
from gossamer.eda.tools import Ran, Tool

Simulator = Literal["verilator", "icarus"]
_NOT_THE_BENCH = re.compile(r"- \S+:\d+: Verilog \$finish|\S+:\d+: \$finish called at |gossamer: \$finish$")
_FINISH = re.compile(r"\$finish\s*(\(\s*\d*\s*\))?\s*;")
_TOLD_FINISH = 'begin $display("gossamer: $finish"); $finish; end'
"""Icarus before 12 does not tell a `$finish` from an end for want of events, so benches say it themselves."""


@dataclass(frozen=True)
class Simulation:
    """How a test bench ended. `status` is 0 after `$finish`; other after `$fatal`, `$stop`, a failed assertion, or when
    nothing was left to happen before `$finish`. `lines` are those it printed."""

    status: int
    lines: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it reached `$finish` without complaint; what it printed is for the caller to judge."""
        return self.status == 0


def simulate(
    bench: Design,
    simulator: Simulator = "verilator",
    arguments: Sequence[str] = (),
    seconds: float = 600.0,
    optimise: int = 1,
) -> Simulation:
    """Runs a self-checking bench: a design whose top module has no ports. `arguments` are plusargs (`+n=3`).

    Icarus knows the state X, and takes no time to compile; Verilator runs a thousand times as fast. What was compiled
    is kept. Raises `ToolError` where a tool is missing, the bench does not compile, or runs for more than `seconds`.
    """
    if simulator not in ("verilator", "icarus"):
        raise SettingError(f"simulator is {simulator!r}: choose verilator or icarus")
    if simulator == "verilator":
        program = build(bench, DRIVERS / "bench.cpp", optimise, timing=True)
        tool, first = Tool("the test bench", (str(program),), ""), []
    else:
        program = _icarus(bench)
        tool, first = tools.find("vvp"), ["-n", str(program)]
    with tempfile.TemporaryDirectory() as name:  # a bench may write files: not into the cache
        folder = Path(name)
        bench.place(folder)
        ran = tools.run(tool, [*first, *arguments], folder, seconds, statuses=None)
    return _ended(ran, simulator)


def _ended(ran: Ran, simulator: Simulator) -> Simulation:
    lines = tuple(line for line in ran.lines if not _NOT_THE_BENCH.match(line))
    finished = simulator == "verilator" or len(lines) < len(ran.lines)
    complained = simulator == "icarus" and any(line.startswith(("ERROR: ", "FATAL: ")) for line in lines)
    return Simulation(ran.status or int(complained) or (0 if finished else 3), lines)


def _icarus(bench: Design) -> Path:
    icarus = tools.find("icarus")

    def make(folder: Path) -> None:
        bench.place(folder)
        for name in bench.names:
            if name.endswith((".v", ".sv", ".vh", ".svh")):
                text = (folder / name).read_text(encoding="utf-8")
                (folder / name).write_text(_FINISH.sub(_TOLD_FINISH, text), encoding="utf-8")
        tools.run(icarus, ["-o", "program.vvp", *bench.icarus()], folder, 600.0, bench.names)

    return built("icarus", (bench.key, icarus.version, _TOLD_FINISH), make) / "program.vvp"
