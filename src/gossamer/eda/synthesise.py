"""A design as gates of a library: area, cells and the longest path of each module; memories are counted apart."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gossamer.core.errors import SettingError
from gossamer.core.files import file_digest, write_json
from gossamer.eda import tools
from gossamer.eda.cache import built
from gossamer.eda.design import Design
from gossamer.eda.liberty import Library, plain, read_liberty
from gossamer.eda.tools import ToolError

Goal = Literal["area", "delay"]
_ABC = {
    "area": "strash; dc2; dc2; dch -f; amap -m; buffer -c; topo; dnsize; stime -p",
    "delay": "strash; dc2; dc2; dch; dch -f; &get -n; &nf; &put; buffer -c; topo; upsize; dnsize; stime -p",
}
"""Without SAT sweeping (`&fraig`), which takes hours on multipliers and finds nothing in them."""

_MODULE = "gossamer synthesises "
_DELAY = re.compile(r"ABC: .*Delay = *([\d.]+) ps")
_GATE = re.compile(r"ABC: Path +\d+ -- .*? : +\d+ +\d+ +(\S+) +A =")
_ENDS = re.compile(r"ABC: Start-point = \w+ \((.*?)\)\. +End-point = \w+ \((.*?)\)")


@dataclass(frozen=True)
class SlowPath:
    """The slowest way through a module's own logic: delay in ns, the cells on it in order, the signals at its ends."""

    ns: float
    cells: tuple[str, ...]
    start: str
    end: str


@dataclass(frozen=True)
class Module:
    """What is in one module, synthesised once for all its `instances`: library cells and modules within, by name; the
    areas are of its own cells. `path` is None where there is no logic."""

    name: str
    instances: int
    cells: Mapping[str, int]
    modules: Mapping[str, int]
    area_um2: float
    sequential_um2: float
    path: SlowPath | None


@dataclass(frozen=True)
class SramUse:
    """A memory that is not made of flip-flops: `depth` words of `width` bits with so many ports, in a module (`name` is
    the register array there), and how many of it the whole design has. `clocked` tells reads that take a clock edge, as
    those of an SRAM macro do; what reads at once needs another kind."""

    module: str
    name: str
    width: int
    depth: int
    read_ports: int
    write_ports: int
    clocked: bool
    instances: int

    @property
    def bits(self) -> int:
        """Of all instances."""
        return self.width * self.depth * self.instances


@dataclass(frozen=True)
class Synthesis:
    """The gates of a design. Areas are of cells, placed without a gap and without wires; memories are in `srams` only.

    `register_ns` is what the slowest kind of flip-flop used adds to a path, clock to output and setup. `netlist` is the
    mapped Verilog in the cache, beside it the same as Yosys' JSON."""

    top: str
    library: str
    modules: Mapping[str, Module]
    srams: tuple[SramUse, ...]
    register_ns: float
    tool: str
    netlist: Path

    @property
    def area_um2(self) -> float:
        """Of all cells of the design."""
        return sum(module.area_um2 * module.instances for module in self.modules.values())

    @property
    def sequential_share(self) -> float:
        """The part of the area that is flip-flops, 0 to 1."""
        held = sum(module.sequential_um2 * module.instances for module in self.modules.values())
        return held / self.area_um2 if self.area_um2 else 0.0

    @property
    def cells(self) -> dict[str, int]:
        """How many of each library cell the whole design has."""
        total: Counter[str] = Counter()
        for module in self.modules.values():
            total.update({name: count * module.instances for name, count in module.cells.items()})
        return dict(total)

    @property
    def slowest(self) -> Module | None:
        """The module with the slowest path; None in a design without logic."""
        timed = [module for module in self.modules.values() if module.path]
        return max(timed, key=lambda module: module.path.ns if module.path else 0.0, default=None)

    @property
    def critical_path_ns(self) -> float:
        """The slowest path within any one module, from register to register: estimated by ABC, without wires. To see
        those that pass from module to module, synthesise with `flatten`."""
        return self.register_ns + (self.slowest.path.ns if self.slowest and self.slowest.path else 0.0)

    def area_within(self, name: str) -> float:
        """The area of one instance of a module with all that is in it, in um2."""
        module = self.modules[name]
        return module.area_um2 + sum(self.area_within(inner) * count for inner, count in module.modules.items())


def synthesise(
    design: Design,
    liberty: Path,
    flatten: bool = False,
    goal: Goal = "area",
    flop_bits: int = 1024,
    seconds: float = 1800.0,
) -> Synthesis:
    """Maps the design to the cells of a liberty file (`.lib`, `.lib.gz`) by Yosys and ABC.

    Each module is synthesised once, however often it is used, unless `flatten` makes one of all. A memory that is
    written and has more than `flop_bits` bits is left out and listed as an `SramUse`; smaller ones become flip-flops,
    and those only read become logic. `goal` "delay" sizes gates for speed. Results are kept in the cache.

    Raises `LibertyError` for a file that is none, `ToolError` with the first error where Yosys refuses the design, runs
    out of time, or the library lacks a kind of cell (a latch, say), and `SettingError` for a setting out of range.
    """
    if goal not in _ABC:
        raise SettingError(f"goal is {goal!r}: choose area or delay")
    if flop_bits < 0:
        raise SettingError(f"flop_bits is {flop_bits}: give the bits of the largest memory that may become flip-flops")
    library = read_liberty(liberty)
    yosys = tools.find("yosys")

    def make(folder: Path) -> None:
        design.place(folder)
        (folder / "cells.lib").write_text(plain(liberty), encoding="utf-8")
        (folder / "map.abc").write_text(_ABC[goal].replace("; ", "\n") + "\n", encoding="utf-8")
        flat = ["flatten"] if flatten else []
        coarse = [*design.yosys(), "proc", *flat, "delete t:$print", "chformal -remove"]
        coarse += [f"synth -top {design.top} -noalumacc -nordff -run coarse:fine"]
        modules = _coarse(coarse, folder, seconds, design.names)
        srams = _memories(modules, flop_bits)
        if srams:  # registers at their ports become theirs, as in a macro; small memories would only double them
            ports = [f"memory_dff {_glob(sram['module'])}/{_glob(sram['cell'])}" for sram in srams]
            modules = _coarse(["read_rtlil coarse.il", *ports, "opt_clean"], folder, seconds, design.names)
            srams = _memories(modules, flop_bits)
        script = ["read_rtlil coarse.il"]
        for index, sram in enumerate(srams):
            script += [
                f"submod -name {_sram(index)} {_glob(sram['module'])}/{_glob(sram['cell'])}",
                f"blackbox {_sram(index)}",
            ]
        script += [f"synth -top {design.top} -noalumacc -noabc -run fine:check", "dfflibmap -liberty cells.lib"]
        for name in modules:
            script += [f"log {_MODULE}{name}", f"abc -liberty cells.lib -script map.abc {_glob(name)}"]
        script += ["opt_clean -purge", "tee -q -o stat.json stat -json", "write_verilog -noattr -noexpr netlist.v"]
        script += ["write_json netlist.json"]
        log = tools.yosys(script, folder, seconds, design.names).lines
        counts = json.loads((folder / "stat.json").read_text(encoding="utf-8"))["modules"]
        found = _result(design, library, modules, counts, srams, _paths(log), yosys.version)
        for path in folder.iterdir():
            if path.stem != "netlist":
                path.unlink()
        write_json(folder / "synthesis.json", asdict(found))

    said = (design.key, file_digest(liberty), flatten, goal, flop_bits, yosys.version, file_digest(Path(__file__)))
    folder = built("synthesis", said, make)
    return _read(json.loads((folder / "synthesis.json").read_text(encoding="utf-8")), folder)


def _coarse(script: list[str], folder: Path, seconds: float, names: Mapping[str, str]) -> dict[str, Any]:
    """Runs the script, whose design becomes `coarse.il`. Returns its modules."""
    tools.yosys([*script, "write_json coarse.json", "write_rtlil coarse.il"], folder, seconds, names)
    modules: dict[str, Any] = json.loads((folder / "coarse.json").read_text(encoding="utf-8"))["modules"]
    return modules


def _memories(modules: Mapping[str, Any], flop_bits: int) -> list[dict[str, Any]]:
    """The memories that are too large for flip-flops: where they are, and their settings."""
    found = []
    for module, content in modules.items():
        for cell, each in content["cells"].items():
            if each["type"] not in ("$mem", "$mem_v2"):
                continue
            value = {
                name: int(bits, 2) for name, bits in each["parameters"].items() if set(bits) <= {"0", "1"} and bits
            }
            if value["WR_PORTS"] and value["WIDTH"] * value["SIZE"] > flop_bits:
                name = each["parameters"]["MEMID"].lstrip("\\")
                found.append({"module": module, "cell": cell, "name": name, **value})
    return found


def _paths(log: list[str]) -> dict[str, SlowPath]:
    """The slowest path of each module, from what ABC printed after the module's name."""
    said: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in log:
        if line.startswith(_MODULE):
            lines = said.setdefault(line.removeprefix(_MODULE).strip(), [])
        lines.append(line)
    paths = {}
    for name, part in said.items():
        text = "\n".join(part)
        cells = tuple(cell for cell in _GATE.findall(text) if cell != "pi")
        if (delay := _DELAY.search(text)) and (ends := _ENDS.search(text)) and cells:
            paths[name] = SlowPath(float(delay[1]) / 1000, cells, *(end.replace("\\", "") for end in ends.groups()))
    return paths


def _result(
    design: Design,
    library: Library,
    modules: Mapping[str, Any],
    counts: Mapping[str, Any],
    srams: list[dict[str, Any]],
    paths: Mapping[str, SlowPath],
    version: str,
) -> Synthesis:
    names = _short(list(modules))
    inside = {name.lstrip("\\"): Counter(each["num_cells_by_type"]) for name, each in counts.items()}
    inside = {
        name: Counter({kind.lstrip("\\"): count for kind, count in each.items()}) for name, each in inside.items()
    }
    instances = _instances(design.top, inside)
    known = {_sram(index) for index in range(len(srams))}
    found = {}
    for name, held in inside.items():
        if name in known:
            continue
        cells = {kind: count for kind, count in held.items() if kind in library.cells}
        inner = {names[kind]: count for kind, count in held.items() if kind in inside and kind not in known}
        if odd := sorted(set(held) - set(cells) - set(inside) - known):
            raise ToolError(
                f"{names[name]} needs {held[odd[0]]} cells {odd[0]}, which library {library.name} has none for"
            )
        area = {kind: count * library.cells[kind].area for kind, count in cells.items()}
        held_area = sum(each for kind, each in area.items() if library.cells[kind].sequential)
        path = paths.get(name)
        module = Module(names[name], instances[name], cells, inner, sum(area.values()), held_area, path)
        found[module.name] = module
    used = [library.cells[kind].delay for module in found.values() for kind in module.cells]
    uses = tuple(
        SramUse(
            names[each["module"]],
            each["name"],
            each["WIDTH"],
            each["SIZE"],
            each["RD_PORTS"],
            each["WR_PORTS"],
            each["RD_CLK_ENABLE"] == (1 << each["RD_PORTS"]) - 1,
            instances[each["module"]],
        )
        for each in srams
    )
    tool = f"Yosys {version}, delays by ABC"
    return Synthesis(
        names[design.top], library.name, found, uses, max(used, default=0.0) * 1e9, tool, Path("netlist.v")
    )


def _instances(top: str, inside: Mapping[str, Counter[str]]) -> Counter[str]:
    """How often each module is in the whole design."""
    total: Counter[str] = Counter()
    level = Counter({top: 1})
    while level:
        total.update(level)
        deeper: Counter[str] = Counter()
        for name, times in level.items():
            deeper.update(
                {kind: count * times for kind, count in inside.get(name, Counter()).items() if kind in inside}
            )
        level = deeper
    return total


def _short(names: list[str]) -> dict[str, str]:
    """The modules' names as in the source; a second setting of parameters of one module is `name#2`."""
    short: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for name in names:
        base = name.split("\\")[1] if name.startswith("$paramod") else name
        seen[base] += 1
        short[name] = base if seen[base] == 1 else f"{base}#{seen[base]}"
    return short


def _glob(name: str) -> str:
    """A name as a pattern of Yosys' selections."""
    return re.sub(r"[^A-Za-z0-9_.$']", "?", name)


def _sram(index: int) -> str:
    return f"gossamer_sram_{index}"


def _read(kept: dict[str, Any], folder: Path) -> Synthesis:
    modules = {}
    for name, each in kept["modules"].items():
        path = each["path"] and SlowPath(**{**each["path"], "cells": tuple(each["path"]["cells"])})
        modules[name] = Module(**{**each, "path": path})
    srams = tuple(SramUse(**each) for each in kept["srams"])
    return Synthesis(**{**kept, "modules": modules, "srams": srams, "netlist": folder / "netlist.v"})
