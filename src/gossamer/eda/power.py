"""The power of a design's gates on given data: how often each wire toggles, times what the library says of it.

OpenSTA does the sum where it is installed, with energies at each gate's slew and load, else this module does, with
those at the low end of the library's.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.core.errors import SettingError
from gossamer.eda import opensta, tools
from gossamer.eda.design import Design
from gossamer.eda.liberty import Library, plain, read_liberty
from gossamer.eda.model import Model
from gossamer.eda.opensta import Activity, Watts
from gossamer.eda.synthesise import synthesise

Sum = Literal["auto", "liberty", "opensta"]
METHODS = {"liberty": "estimated: toggles x liberty", "opensta": "estimated: OpenSTA on simulated toggles"}
_ROWS = 1024
"""Cycles simulated at once: each takes a bit for every wire."""


@dataclass(frozen=True)
class Power:
    """Watts, by cause: charging the loads of toggling outputs, what cells spend inside as they toggle, the clock (its
    wire and what registers spend on it, toggling or not; by OpenSTA its wire alone, the rest is inside cells), and
    leakage. `activity` is the mean number of toggles of a wire in a cycle. `method` says how this was found."""

    switching_w: float
    internal_w: float
    clock_w: float
    leakage_w: float
    activity: float
    cycles: int
    method: str

    @property
    def total_w(self) -> float:
        """All of it."""
        return self.switching_w + self.internal_w + self.clock_w + self.leakage_w


def estimate_power(
    design: Design,
    liberty: Path,
    inputs: Mapping[str, ArrayLike],
    frequency_hz: float,
    clock: str = "clk",
    by: Sum = "auto",
) -> Power:
    """The power at a clock frequency while the inputs run through: columns as for `Model.run`, of two cycles or more.

    The design is synthesised flat, and its gates are simulated. Not in it: glitches (gates have no delay here), the
    capacitance of wires, the clock's tree and gates, and whatever drives the inputs: silicon takes more. `by` says who
    sums it up: this module (`liberty`), OpenSTA, or by default OpenSTA where a version is installed that can (see
    `opensta.usable`). `METHODS` has what the result calls them.

    Raises `SettingError` for a design whose memories are left out as SRAMs (estimate the units around them), too few
    cycles or a frequency that is none, and as `synthesise` and `Model` do.
    """
    if by not in ("auto", *METHODS):
        raise SettingError(f"by is {by!r}: choose auto, {' or '.join(METHODS)}")
    if not frequency_hz > 0:
        raise SettingError(f"frequency_hz is {frequency_hz}: give the clock's frequency in Hz")
    rows = {name: np.asarray(column) for name, column in inputs.items()}
    cycles = min((len(column) for column in rows.values() if column.ndim), default=0)
    if cycles < 2:
        raise SettingError(f"the inputs have {cycles} cycles: toggles need two or more")
    found = synthesise(design, liberty, flatten=True)
    if found.srams:
        raise SettingError(
            f"{found.srams[0].name} of {design.top} is an SRAM, whose power is not in gates: leave it out"
        )
    netlist = json.loads(found.netlist.with_suffix(".json").read_text(encoding="utf-8"))["modules"][found.top]
    wires = sorted({bit for cell in netlist["cells"].values() for bit in _bits(cell["connections"])})
    with tempfile.TemporaryDirectory() as temporary:
        gates = _gates(design.top, netlist, wires, liberty, Path(temporary))
        toggles, ones = _toggles(Model(gates, clock, optimise=1), rows, cycles, len(wires))
    changes = dict(zip(wires, (toggles / (cycles - 1)).tolist(), strict=True))
    clocks = _clocks(netlist, clock)
    moving = [count for bit, count in changes.items() if bit not in clocks]
    activity = sum(moving) / len(moving) if moving else 0.0
    library = read_liberty(liberty)
    if by == "liberty" or (by == "auto" and not opensta.usable()):
        switching, internal, ticking, leakage = _by_liberty(netlist, library, changes, clock)
        watts = (switching * frequency_hz, internal * frequency_hz, ticking * frequency_hz)
        return Power(*watts, leakage, activity, cycles, METHODS["liberty"])
    seen = {bit: Activity(changes[bit], high / cycles) for bit, high in zip(wires, ones.tolist(), strict=True)}
    told = _by_opensta(design.top, netlist, liberty, seen, clock, 1 / frequency_hz)
    loads = _loads(netlist, library)
    wire = sum(loads[bit] for bit in clocks) * library.voltage**2 * frequency_hz
    return Power(told.switching, told.internal, wire, told.leakage, activity, cycles, METHODS["opensta"])


def _by_opensta(
    top: str, netlist: dict[str, Any], liberty: Path, seen: Mapping[int, Activity], clock: str, period_s: float
) -> Watts:
    library = read_liberty(liberty)
    pins = {
        f"g{index}/{pin}": seen[bit]
        for index, cell in enumerate(netlist["cells"].values())
        for pin in library.cells[cell["type"]].outputs
        for bit in _bits({pin: cell["connections"].get(pin, [])})
    }
    ports = {
        f"{label}[{index}]": seen[bit]
        for label, port in netlist["ports"].items()
        if port["direction"] == "input" and label != clock
        for index, bit in enumerate(port["bits"])
        if bit in seen
    }
    text = "\n".join([f"module {top}({', '.join(netlist['ports'])});", *_verilog(netlist), "endmodule", ""])
    ticking = f"{clock}[0]" if clock in netlist["ports"] else None
    return opensta.power(text, top, plain(liberty), ticking, period_s, pins, ports)


def _bits(connections: Mapping[str, list[Any]]) -> list[int]:
    return [bit for pins in connections.values() for bit in pins if isinstance(bit, int)]


def _verilog(netlist: dict[str, Any]) -> list[str]:
    """A module's ports, wires `w0`, `w1`, … and cells `g0`, `g1`, …, without its head and end."""

    def name(bit: int | str) -> str:
        return f"w{bit}" if isinstance(bit, int) else f"1'b{bit}"

    ports = netlist["ports"]
    text = [f"  {port['direction']} [{len(port['bits']) - 1}:0] {label};" for label, port in ports.items()]
    used = {bit for cell in netlist["cells"].values() for bit in _bits(cell["connections"])}
    used |= {bit for port in ports.values() for bit in port["bits"] if isinstance(bit, int)}
    text += [f"  wire w{bit};" for bit in sorted(used)]
    for label, port in ports.items():
        for index, bit in enumerate(port["bits"]):
            sides = (name(bit), f"{label}[{index}]")
            text.append("  assign {} = {};".format(*(sides if port["direction"] == "input" else sides[::-1])))
    for index, cell in enumerate(netlist["cells"].values()):
        pins = ", ".join(f".{pin}({name(bits[0])})" for pin, bits in cell["connections"].items())
        text.append(f"  {cell['type']} g{index}({pins});")
    return text


def _gates(top: str, netlist: dict[str, Any], wires: list[int], liberty: Path, folder: Path) -> Design:
    """The netlist as Verilog with one more output, which has all its wires."""
    joined = ", ".join(f"w{bit}" for bit in reversed(wires))
    text = [
        f"module {top}({', '.join(netlist['ports'])}, gossamer_wires);",
        f"  output [{_width(wires) - 1}:0] gossamer_wires;",
        *_verilog(netlist),
        f"  assign gossamer_wires = {{{_width(wires) - len(wires)}'b0, {joined}}};",
        "endmodule",
        "",
    ]
    (folder / "gates.v").write_text("\n".join(text), encoding="utf-8")
    (folder / "cells.lib").write_text(plain(liberty), encoding="utf-8")
    tools.yosys(["read_liberty -ignore_miss_func cells.lib", "write_verilog -noattr cells.v"], folder, 600.0)
    return Design([folder / "gates.v", folder / "cells.v"], top)


def _width(wires: list[int]) -> int:
    """Bits of the output that has all wires: always one too many, and so many that it is an output of words."""
    return max(len(wires), 64) + 1


def _toggles(
    gates: Model, inputs: Mapping[str, NDArray[Any]], cycles: int, wires: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How often each wire changed from one cycle to the next, and in how many cycles it was 1."""
    changes, ones = np.zeros(wires, np.int64), np.zeros(wires, np.int64)
    last: NDArray[np.unsignedinteger] | None = None
    for start in range(0, cycles, _ROWS):
        part = {name: column[start : start + _ROWS] for name, column in inputs.items()}
        seen = gates.run(part, ["gossamer_wires"])["gossamer_wires"]
        ones += _by_wire(seen, wires)
        seen = seen if last is None else np.concatenate([last, seen])
        changes += _by_wire(seen[1:] ^ seen[:-1], wires)
        last = seen[-1:]
    return changes, ones


def _by_wire(words: NDArray[np.unsignedinteger], wires: int) -> NDArray[np.int64]:
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=wires, bitorder="little")
    return bits.sum(axis=0, dtype=np.int64)


def _loads(netlist: dict[str, Any], library: Library) -> Counter[int]:
    """What each wire drives, in farads."""
    loads: Counter[int] = Counter()
    for cell in netlist["cells"].values():
        for pin, farads in library.cells[cell["type"]].inputs.items():
            for bit in _bits({pin: cell["connections"].get(pin, [])}):
                loads[bit] += farads  # type: ignore[assignment]
    return loads


def _clocks(netlist: dict[str, Any], clock: str) -> set[int]:
    return {bit for bit in netlist["ports"].get(clock, {"bits": []})["bits"] if isinstance(bit, int)}


def _by_liberty(
    netlist: dict[str, Any], library: Library, changes: Mapping[int, float], clock: str
) -> tuple[float, float, float, float]:
    """Joules in a cycle: of switching, inside cells, of the clock; and watts of leakage."""
    loads, half = _loads(netlist, library), library.voltage**2 / 2
    switching = internal = leakage = 0.0
    ticking = sum(loads[bit] for bit in _clocks(netlist, clock)) * half * 2
    for each in netlist["cells"].values():
        cell = library.cells[each["type"]]
        leakage += cell.leakage
        ticking += cell.clock_energy * 2
        for bit in _bits({pin: each["connections"].get(pin, []) for pin in cell.outputs}):
            switching += changes[bit] * loads[bit] * half
            internal += changes[bit] * cell.energy
    return switching, internal, ticking, leakage
