"""What a liberty file (`.lib`, `.lib.gz`) says of its cells: area, leakage, energies, capacitances, register delays."""

import gzip
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gossamer.core.errors import GossamerError

_BLANK = re.compile(r"/\*.*?\*/|//[^\n]*|\\\r?\n", re.DOTALL)
_STATEMENT = re.compile(
    r'\s*(?:(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<given>(?:"[^"]*"|[^"()])*)\)\s*(?P<open>\{)?'
    r'|:\s*(?P<value>"[^"]*"|[^;"{}\n]+))|(?P<close>\}))\s*;?'
)
_NUMBER = re.compile(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?")
_POWERS = ("rise_power", "fall_power", "power")
_PREFIXES = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3}


class LibertyError(GossamerError):
    """A file that is not a liberty library, or has no cells. The message names its first line that is at fault."""


@dataclass(frozen=True)
class Cell:
    """One cell. `area` in um2; `leakage` in W; `energy` is the J spent inside for one transition of an output and
    `clock_energy` for one of its clock, averaged over rise and fall; `inputs` have capacitances in F. `delay` is
    a register's from clock to output plus its setup, in s; 0 for others. Of each table over slews and loads the lower
    quartile is taken."""

    name: str
    area: float
    leakage: float
    energy: float
    clock_energy: float
    inputs: Mapping[str, float]
    outputs: tuple[str, ...]
    sequential: bool
    delay: float


@dataclass(frozen=True)
class Library:
    """Cells by name, at a supply of `voltage` volts."""

    name: str
    voltage: float
    cells: Mapping[str, Cell]


@dataclass
class _Group:
    kind: str
    name: str
    values: dict[str, str] = field(default_factory=dict)
    groups: list["_Group"] = field(default_factory=list)

    def all(self, *kinds: str) -> Iterator["_Group"]:
        """The groups of these kinds at any depth."""
        for group in self.groups:
            if group.kind in kinds:
                yield group
            yield from group.all(*kinds)

    def number(self, name: str, otherwise: float = 0.0) -> float:
        try:
            return float(self.values.get(name, otherwise))
        except ValueError:
            return otherwise


def plain(path: Path) -> str:
    """The text of a `.lib` or `.lib.gz` file. Raises `LibertyError` where it cannot be read as one."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8", "replace")
    except (OSError, EOFError) as error:
        raise LibertyError(f"cannot read the liberty file {path}: {error}") from error


def read_liberty(path: Path) -> Library:
    """The library in a file. Raises `LibertyError`."""
    return _read(path.resolve(), path.stat().st_mtime_ns if path.exists() else 0)


@cache
def _read(path: Path, _: int) -> Library:
    root = _parse(path, plain(path))
    volts, capacitance = (_unit(root.values.get(name, "1")) for name in ("voltage_unit", "capacitive_load_unit"))
    leakage, time = (_unit(root.values.get(name, "1nX")) for name in ("leakage_power_unit", "time_unit"))
    corner = next((group for group in root.groups if group.kind == "operating_conditions"), root)
    voltage = (corner.number("voltage") or root.number("nom_voltage")) * volts
    scales = (leakage, capacitance * volts**2, capacitance, time)
    cells = {group.name: _cell(group, *scales) for group in root.groups if group.kind == "cell"}
    if not cells or voltage <= 0:
        lack = "voltage (operating_conditions or nom_voltage)" if cells else "cells"
        raise LibertyError(f"{path}: library {root.name} has no {lack}")
    return Library(root.name, voltage, cells)


def _parse(path: Path, text: str) -> _Group:
    text = _BLANK.sub(lambda blank: re.sub(r"[^\n]", " ", blank[0]), text)  # every place keeps its line
    top = _Group("", "")
    stack = [top]
    at = 0
    while match := _STATEMENT.match(text, at):
        outside = len(stack) == 1
        if outside and not (match["name"] == "library" and match["open"] and not top.groups):
            break
        at = match.end()
        if match["close"]:
            stack.pop()
        elif match["open"]:
            group = _Group(match["name"], match["given"].strip().strip('"'))
            stack[-1].groups.append(group)
            stack.append(group)
        elif match["name"]:
            value = match["given"] if match["value"] is None else match["value"]
            stack[-1].values[match["name"]] = value.strip().strip('"')
    if len(stack) == 1 and top.groups and not text[at:].strip():
        return top.groups[0]
    at += len(text[at:]) - len(text[at:].lstrip())
    expected = "a statement" if top.groups else "library (name) {"
    found = (
        repr(text[at:].split("\n", 1)[0].strip()[:60]) if at < len(text) else f"the end of the file in {stack[-1].kind}"
    )
    raise LibertyError(f"{path}:{text.count(chr(10), 0, at) + 1}: not liberty: expected {expected}, found {found}")


def _cell(group: _Group, leakage: float, energy: float, capacitance: float, time: float) -> Cell:
    pins = [pin for pin in group.all("pin") if "direction" in pin.values]
    inputs = [pin for pin in pins if pin.values["direction"] == "input"]
    outputs = [pin for pin in pins if pin.values["direction"] == "output"]
    clocks = [pin for pin in inputs if pin.values.get("clock") == "true"]
    sequential = any(group.all("ff", "latch", "ff_bank", "latch_bank", "statetable"))
    delay = 0.0
    if sequential:
        launches = (arc for pin in outputs for arc in pin.groups if arc.values.get("timing_type", "").endswith("_edge"))
        setups = (arc for pin in inputs for arc in pin.groups if arc.values.get("timing_type", "").startswith("setup"))
        delay = _typical(launches, "cell_rise", "cell_fall") + _typical(setups, "rise_constraint", "fall_constraint")
    leaks = [each.number("value") for each in group.groups if each.kind == "leakage_power"]
    given = group.number("cell_leakage_power") or (statistics.fmean(leaks) if leaks else 0.0)
    return Cell(
        name=group.name,
        area=group.number("area"),
        leakage=given * leakage,
        energy=_typical((power for pin in outputs for power in pin.all("internal_power")), *_POWERS) * energy,
        clock_energy=_typical((power for pin in clocks for power in pin.all("internal_power")), *_POWERS) * energy,
        inputs={pin.name: pin.number("capacitance") * capacitance for pin in inputs},
        outputs=tuple(pin.name for pin in outputs),
        sequential=sequential,
        delay=delay * time,
    )


def _typical(arcs: Iterator[_Group], *tables: str) -> float:
    """The mean over the arcs' tables of each table's lower quartile, as slews and loads in logic lie at the low end of
    what tables span; 0 without any."""
    quartiles = [
        sorted(numbers)[len(numbers) // 4]
        for arc in arcs
        for table in arc.groups
        if table.kind in tables and (numbers := [float(number) for number in _NUMBER.findall(table.values["values"])])
    ]
    return statistics.fmean(quartiles) if quartiles else 0.0


def _unit(text: str) -> float:
    """`1pW` or `1,pf`, as a factor to the SI unit."""
    match = re.fullmatch(r"([\d.eE+-]+)[,\s]*([fpnumk]?)[A-Za-z]+", text.replace('"', "").strip())
    return float(match[1]) * _PREFIXES[match[2]] if match else 1.0
