"""Is it so for all inputs, for ever? Two designs that do the same, or a design whose assertions hold."""

import json
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gossamer.core.errors import SettingError
from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.tools import OutOfTimeError

Outcome = Literal["proved", "counterexample", "gave up"]
Start = Literal["any", "zero"]
_FLAT = [
    "proc",
    "flatten",
    "memory_map",
    "opt -nodffe -nosdff",
    "async2sync",
    "dffunmap",
    "opt_clean",
]
_VALUE = re.compile(r" *(?P<step>\d+|init)? +\\(?P<name>\S+) +\S+ +\S+ +(?P<bits>[01x-]+)$")
_DEPTH = re.compile(r"\[base case (\d+)\] Solving problem")


@dataclass(frozen=True)
class Proof:
    """What was found in `seconds`. `steps` is how many clock cycles from the start are known to be right, where the
    proof gave up, or before the counterexample (0 in logic without state). `counterexample` has, for each cycle, values
    by signal; of two designs inputs are called `in_NAME`, outputs `gold_NAME` and `gate_NAME`."""

    outcome: Outcome
    steps: int
    seconds: float
    counterexample: tuple[Mapping[str, int], ...] = ()

    def __str__(self) -> str:
        if self.outcome == "gave up":
            return f"gave up after {self.seconds:.1f} s: right for {self.steps} cycles, not known beyond"
        return f"{self.outcome} in {self.seconds:.1f} s"


def prove(
    gate: Design,
    gold: Design | None = None,
    reset: str | None = None,
    start: Start = "any",
    steps: int = 20,
    seconds: float = 60.0,
) -> Proof:
    """Whether `gate` does what `gold` does, on all inputs; without `gold`, whether the `assert`s in `gate` always hold.

    The two tops have ports of the same names and widths. Registers without an initial value `start` at any, which may
    differ between the two, or at zero; `reset` names an input that is 1 in the first cycle, which is not looked at. All
    clocks are taken for one. Done by SAT, for state by induction over at most `steps` cycles, after trying whether two
    designs that start at zero agree register by register. What needs more cycles or `seconds` ends as "gave up";
    products of more than some ten bits that are not built alike are such.

    Raises `ToolError` where Yosys is missing or refuses a design (ports that differ), `SettingError` for bad settings.
    """
    if start not in ("any", "zero") or steps < 1 or seconds <= 0:
        raise SettingError(f"start={start!r}, steps={steps}, seconds={seconds}: give any or zero, and positive numbers")
    began = time.monotonic()

    def left() -> float:
        return max(seconds - (time.monotonic() - began), 0.01)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            for side, design in (("gate", gate), ("gold", gold)):
                if design:
                    _read(side, design, folder / side, left())
            state, initial = _problem(folder, gold is not None, left())
            if gold is None and not (folder / "asserts").read_text(encoding="utf-8").strip():
                raise SettingError(f"{gate.top} has no assert to prove: add some, or give a design to compare with")
            if reset is not None and not state:
                raise SettingError(f"{gate.top} has no registers for {reset} to reset: leave reset out")
            if gold and state and start == "zero" and not initial and _alike(folder, left()):
                return Proof("proved", 0, time.monotonic() - began)
            name = reset and (f"in_{reset}" if gold else reset)
            ask = _question(state, name, start, steps, left())
            log = tools.yosys(["read_rtlil miter.il", ask], folder, left()).lines
        except OutOfTimeError:
            return Proof("gave up", 0, time.monotonic() - began)
    return _verdict(log, time.monotonic() - began)


def _read(side: str, design: Design, folder: Path, seconds: float) -> None:
    """Writes a side's design, flat and of simple registers, beside its folder."""
    folder.mkdir()
    design.place(folder)
    script = [*design.yosys(formal=True), *_FLAT, f"rename {design.top} {side}", f"write_rtlil ../{side}.il"]
    tools.yosys(script, folder, seconds, design.names)


def _problem(folder: Path, pair: bool, seconds: float) -> tuple[bool, bool]:
    """Writes the module whose output `trigger` must stay 0. Returns whether it has registers, and initial values."""
    script = [
        "read_rtlil gate.il",
        "select -write asserts t:$assert t:$check",
        "miter -assert -flatten -make_outputs gate miter",
    ]
    if pair:
        script = ["read_rtlil gold.il", "read_rtlil gate.il", "miter -equiv -flatten -make_outputs gold gate miter"]
    script += ["hierarchy -top miter", "opt -full -nodffe -nosdff", "write_rtlil miter.il", "write_json miter.json"]
    tools.yosys(script, folder, seconds)
    miter = json.loads((folder / "miter.json").read_text(encoding="utf-8"))["modules"]["miter"]
    state = any(cell["type"] in ("$dff", "$ff", "$anyinit") for cell in miter["cells"].values())
    return state, any("init" in net["attributes"] for net in miter["netnames"].values())


def _alike(folder: Path, seconds: float) -> bool:
    """Whether registers of equal names, if they once hold the same, always will, and so all outputs."""
    script = ["read_rtlil gold.il", "read_rtlil gate.il", "equiv_make gold gate equiv", "hierarchy -top equiv"]
    script += ["clean -purge", "equiv_simple", "equiv_induct", "equiv_status"]
    try:
        return "Equivalence successfully proven" in tools.yosys(script, folder, seconds / 2, statuses=None).output
    except OutOfTimeError:
        return False


def _question(state: bool, reset: str | None, start: Start, steps: int, seconds: float) -> str:
    words = ["sat", "-timeout", str(max(1, int(seconds))), "-prove trigger 0", "-show-inputs -show-outputs"]
    if state:
        words += ["-tempinduct", f"-maxsteps {steps}"]
        words += ["-set-init-zero"] if start == "zero" else []
        words += ["-seq 1", f"-set-at 1 {reset} 1"] if reset else []
    return " ".join([*words, "-set-assumes", "miter"])


def _verdict(log: list[str], seconds: float) -> Proof:
    depths = [int(match[1]) for line in log if (match := _DEPTH.match(line))]
    tried = depths[-1] - 1 if depths else 0
    if any("Induction step proven: SUCCESS" in line or "no model found: SUCCESS" in line for line in log):
        return Proof("proved", tried + 1 if depths else 0, seconds)
    if not any("model found" in line and "FAIL" in line for line in log):
        return Proof("gave up", tried, seconds)
    cycles: dict[str, dict[str, int]] = {}
    step = "1"
    for line in log:
        if value := _VALUE.match(line):
            step = value["step"] or step
            bits = re.sub("[x-]", "0", value["bits"])  # of no matter
            cycles.setdefault(step, {})[value["name"]] = int(bits, 2)
    cycles.pop("init", None)
    return Proof("counterexample", tried, seconds, tuple(cycles.values()))
