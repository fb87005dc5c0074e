"""OpenSTA, where it is installed: what a flat netlist takes when its wires toggle as they were seen to.

OpenSTA reads energies from the library's tables at the slews and loads of this netlist.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gossamer.eda import tools
from gossamer.eda.tools import Tool, ToolError

_OLDEST = 3
"""Version 2.0, which Debian has, adds up the energies of a rise and a fall for each transition, and those of all
conditions that exclude each other: what cells spend inside comes out several times too large."""
_TOTAL = re.compile(r"^Total +(\S+) +(\S+) +(\S+) +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Activity:
    """Of one wire: transitions in a cycle, and the share of cycles in which it is 1."""

    toggles: float
    duty: float


@dataclass(frozen=True)
class Watts:
    """What cells spend inside, registers' clock pins among it, what charging their loads takes, and leakage."""

    internal: float
    switching: float
    leakage: float


def usable() -> bool:
    """Whether an OpenSTA is installed that sums up as the library says."""
    return tools.available("opensta") and _major(tools.find("opensta")) >= _OLDEST


def power(
    netlist: str,
    top: str,
    liberty: str,
    clock: str | None,
    period_s: float,
    pins: Mapping[str, Activity],
    ports: Mapping[str, Activity],
) -> Watts:
    """The power of the netlist (Verilog, cells only) in the cells of `liberty` (its text), at a clock of that period.

    `pins` are outputs of cells as `cell/pin`, `ports` bits of inputs. Raises `ToolError` where OpenSTA is missing or
    older than version 3, or refuses what it is given.
    """
    sta = tools.find("opensta")
    if _major(sta) < _OLDEST:
        raise ToolError(f"opensta {sta.version} counts energies several times: install version {_OLDEST} or newer")
    ticking = f"[get_ports {clock}]" if clock else "-name clock"
    script = [
        "read_liberty cells.lib",
        "read_verilog netlist.v",
        f"link_design {top}",
        "set_cmd_units -time ns -power W",
        f"create_clock -period {1e9 * period_s:.9g} {ticking}",
        *(f"set_power_activity -input_ports [get_ports {{{name}}}] {_said(seen)}" for name, seen in ports.items()),
        *(f"set_power_activity -pins [get_pins {{{name}}}] {_said(seen)}" for name, seen in pins.items()),
        "report_power -digits 12",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (
            ("cells.lib", liberty),
            ("netlist.v", netlist),
            ("power.tcl", "\n".join([*script, ""])),
        ):
            (folder / file).write_text(text, encoding="utf-8")
        ran = tools.run(sta, ["-no_splash", "-exit", "power.tcl"], folder, 600.0, statuses=None)
    total = _TOTAL.search(ran.output)
    if ran.status or total is None or re.search(r"^Error", ran.output, re.MULTILINE):
        raise ToolError(f"opensta: {tools.first_error(ran.output, ran.status, {})}")
    internal, switching, leakage, _ = map(float, total.groups())
    return Watts(internal, switching, leakage)


def _said(seen: Activity) -> str:
    return f"-activity {seen.toggles:.9g} -duty {seen.duty:.9g}"


def _major(tool: Tool) -> int:
    found = re.match(r"\d+", tool.version)
    return int(found[0]) if found else 0
