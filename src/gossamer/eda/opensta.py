"""OpenSTA, where it is installed: what a flat netlist takes when its wires toggle as they were seen to.

OpenSTA reads energies from the library's tables at the slews and loads of this netlist, wires by the library's wire load
model, if it has a default one.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gossamer.eda import tools
from gossamer.eda.tools import ToolError

_PIN = """proc toggles {name activity duty} {
  set pin [get_pins $name]
  if {[catch {set_power_activity -pins $pin -activity $activity -duty $duty}]} {
    ::sta::set_power_pin_activity [lindex $pin 0] $activity $duty
  }
}"""
"""OpenSTA 2.0's own `set_power_activity` fails where it is given pins."""
_PIN_GROUP = re.compile(r"\bpin\s*\([^)]*\)\s*\{")
_POWER_GROUP = re.compile(r"\binternal_power\s*\([^)]*\)\s*\{")
_WHEN = re.compile(r"\bwhen\s*:")
_BRACE = re.compile(r"[{}]")
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


def unconditional(liberty: str) -> str:
    """The library without a pin's `internal_power` groups that hold `when` something, where it has one that always
    holds: OpenSTA 2.0 adds all of them up, a register's clock seven times over."""
    kept, end = [], 0
    for pin in _PIN_GROUP.finditer(liberty):
        stop = _closing(liberty, pin.end())
        groups = [
            (group.start(), _closing(liberty, group.end())) for group in _POWER_GROUP.finditer(liberty, pin.end(), stop)
        ]
        conditional = [_WHEN.search(liberty, *group) is not None for group in groups]
        for group, drop in zip(groups, conditional, strict=True):
            if drop and not all(conditional):
                kept.append(liberty[end : group[0]])
                end = group[1]
    return "".join([*kept, liberty[end:]])


def _closing(text: str, start: int) -> int:
    """Behind the brace that closes the group whose opening one stands before `start`."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return len(text)


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

    `pins` are outputs of cells as `cell/pin`, `ports` bits of inputs. Version 2.0 (of 2019, Debian's) takes the energies
    of a rise and of a fall for every transition, of all pins that may cause one: `internal` is then twice what the
    library says, and more; the other two are right. Raises `ToolError` where OpenSTA is missing or
    refuses what it is given.
    """
    ticking = f"[get_ports {clock}]" if clock else "-name clock"
    script = [
        _PIN,
        "read_liberty cells.lib",
        "read_verilog netlist.v",
        f"link_design {top}",
        "set_cmd_units -time ns -power W",
        f"create_clock -period {1e9 * period_s:.9g} {ticking}",
        *(
            f"set_power_activity -input_ports [get_ports {{{name}}}] -activity {seen.toggles:.9g} -duty {seen.duty:.9g}"
            for name, seen in ports.items()
        ),
        *(f"toggles {{{name}}} {seen.toggles:.9g} {seen.duty:.9g}" for name, seen in pins.items()),
        "report_power -digits 12",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (
            ("cells.lib", unconditional(liberty)),
            ("netlist.v", netlist),
            ("power.tcl", "\n".join([*script, ""])),
        ):
            (folder / file).write_text(text, encoding="utf-8")
        ran = tools.run(tools.find("opensta"), ["-no_splash", "-exit", "power.tcl"], folder, 600.0, statuses=None)
    total = _TOTAL.search(ran.output)
    if ran.status or total is None or re.search(r"^Error", ran.output, re.MULTILINE):
        raise ToolError(f"opensta: {tools.first_error(ran.output, ran.status, {})}")
    internal, switching, leakage, _ = map(float, total.groups())
    return Watts(internal, switching, leakage)
