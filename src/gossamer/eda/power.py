"""The power of a design's gates on given data: how often each wire toggles, times what the library says of it."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.core.errors import SettingError
from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.liberty import Library, plain, read_liberty
from gossamer.eda.model import Model
from gossamer.eda.synthesise import synthesise

METHOD = "estimated: toggles x liberty"
_ROWS = 1024
"""Cycles simulated at once: each takes a bit for every wire."""


@dataclass(frozen=True)
class Power:
    """Watts, by cause: charging the loads of toggling outputs, what cells spend inside as they toggle, the clock (its
    wire and what registers spend on it, toggling or not), and leakage. `activity` is the mean number of toggles of a
    wire in a cycle. `method` says how this was found."""

    switching_w: float
    internal_w: float
    clock_w: float
    leakage_w: float
    activity: float
    cycles: int
    method: str = METHOD

    @property
    def total_w(self) -> float:
        """All of it."""
        return self.switching_w + self.internal_w + self.clock_w + self.leakage_w


def estimate_power(
    design: Design, liberty: Path, inputs: Mapping[str, ArrayLike], frequency_hz: float, clock: str = "clk"
) -> Power:
    """The power at a clock frequency while the inputs run through: columns as for `Model.run`, of two cycles or more.

    The design is synthesised flat, and its gates are simulated. Not in it: glitches (gates have no delay here), the
    capacitance of wires, the clock's tree and gates, and whatever drives the inputs: silicon takes more. Energies are
    the library's at the low end of its slews and loads.

    Raises `SettingError` for a design whose memories are left out as SRAMs (estimate the units around them), too few
    cycles or a frequency that is none, and as `synthesise` and `Model` do.
    """
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
        toggles = _toggles(Model(gates, clock, optimise=1), rows, cycles, len(wires))
    changes = dict(zip(wires, (toggles / (cycles - 1)).tolist(), strict=True))
    return _sum(netlist, read_liberty(liberty), changes, clock, frequency_hz, cycles)


def _bits(connections: Mapping[str, list[Any]]) -> list[int]:
    return [bit for pins in connections.values() for bit in pins if isinstance(bit, int)]


def _gates(top: str, netlist: dict[str, Any], wires: list[int], liberty: Path, folder: Path) -> Design:
    """The netlist as Verilog with one more output, which has all its wires."""

    def name(bit: int | str) -> str:
        return f"w{bit}" if isinstance(bit, int) else f"1'b{bit}"

    ports = netlist["ports"]
    text = [f"module {top}({', '.join(ports)}, gossamer_wires);"]
    text += [f"  {port['direction']} [{len(port['bits']) - 1}:0] {label};" for label, port in ports.items()]
    text += [f"  output [{_width(wires) - 1}:0] gossamer_wires;"]
    every = {*wires, *(bit for port in ports.values() for bit in port["bits"] if isinstance(bit, int))}
    text += [f"  wire w{bit};" for bit in sorted(every)]
    for label, port in ports.items():
        for index, bit in enumerate(port["bits"]):
            sides = (name(bit), f"{label}[{index}]")
            text.append("  assign {} = {};".format(*(sides if port["direction"] == "input" else sides[::-1])))
    for index, cell in enumerate(netlist["cells"].values()):
        pins = ", ".join(f".{pin}({name(bits[0])})" for pin, bits in cell["connections"].items())
        text.append(f"  {cell['type']} g{index}({pins});")
    joined = ", ".join(f"w{bit}" for bit in reversed(wires))
    text += [f"  assign gossamer_wires = {{{_width(wires) - len(wires)}'b0, {joined}}};", "endmodule", ""]
    (folder / "gates.v").write_text("\n".join(text), encoding="utf-8")
    (folder / "cells.lib").write_text(plain(liberty), encoding="utf-8")
    tools.yosys(["read_liberty -ignore_miss_func cells.lib", "write_verilog -noattr cells.v"], folder, 600.0)
    return Design([folder / "gates.v", folder / "cells.v"], top)


def _width(wires: list[int]) -> int:
    """Bits of the output that has all wires: always one too many, and so many that it is an output of words."""
    return max(len(wires), 64) + 1


def _toggles(gates: Model, inputs: Mapping[str, NDArray[Any]], cycles: int, wires: int) -> NDArray[np.int64]:
    """How often each wire changed from one cycle to the next."""
    total = np.zeros(wires, np.int64)
    last: NDArray[np.unsignedinteger] | None = None
    for start in range(0, cycles, _ROWS):
        part = {name: column[start : start + _ROWS] for name, column in inputs.items()}
        seen = gates.run(part, ["gossamer_wires"])["gossamer_wires"]
        seen = seen if last is None else np.concatenate([last, seen])
        flips = np.ascontiguousarray(seen[1:] ^ seen[:-1]).view(np.uint8)
        total += np.unpackbits(flips, axis=1, count=wires, bitorder="little").sum(axis=0, dtype=np.int64)
        last = seen[-1:]
    return total


def _sum(
    netlist: dict[str, Any], library: Library, changes: dict[int, float], clock: str, frequency_hz: float, cycles: int
) -> Power:
    loads: Counter[int] = Counter()
    for cell in netlist["cells"].values():
        for pin, farads in library.cells[cell["type"]].inputs.items():
            for bit in _bits({pin: cell["connections"].get(pin, [])}):
                loads[bit] += farads  # type: ignore[assignment]
    clocks = {bit for bit in netlist["ports"].get(clock, {"bits": []})["bits"] if isinstance(bit, int)}
    half = library.voltage**2 / 2
    switching = internal = leakage = 0.0
    ticking = sum(loads[bit] for bit in clocks) * half * 2
    for each in netlist["cells"].values():
        cell = library.cells[each["type"]]
        leakage += cell.leakage
        ticking += cell.clock_energy * 2
        for bit in _bits({pin: each["connections"].get(pin, []) for pin in cell.outputs}):
            switching += changes[bit] * loads[bit] * half
            internal += changes[bit] * cell.energy
    quiet = [count for bit, count in changes.items() if bit not in clocks]
    activity = sum(quiet) / len(quiet) if quiet else 0.0
    return Power(switching * frequency_hz, internal * frequency_hz, ticking * frequency_hz, leakage, activity, cycles)
