"""What the tools have to say against a design: Verilator and Yosys, and Icarus and slang where they are installed."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.tools import Ran

_VERILATOR = re.compile(
    r"%(?P<kind>Warning|Error)(?:-(?P<code>\w+))?: (?:(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? )?(?P<message>.+)"
)
_YOSYS = re.compile(r"(?:(?P<file>[^\s:]+):(?P<line>\d+): )?(?P<kind>Warning|ERROR): ?(?P<message>.+)")
_PLACED = re.compile(
    r"(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? (?P<kind>warning|error|syntax error):? ?(?P<message>.*?)"
    r"(?: \[-W(?P<code>[\w-]+)\])?$"
)


@dataclass(frozen=True)
class Finding:
    """One complaint. `code` is the tool's name for its kind, `error` or `warning` where it has none; `file` is the path
    that the design gives, `file` and `line` are None where the tool names no place."""

    tool: str
    file: str | None
    line: int | None
    code: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.message} [{self.tool} {self.code}]"


def lint(design: Design, seconds: float = 120.0) -> list[Finding]:
    """All findings, each once; none for a clean design. What does not even parse is a finding of code `error`.

    Verilator with all its warnings, Yosys' `check` (undriven and doubly driven wires, loops), Icarus and slang as they
    come. Each tool has so many seconds. Raises `ToolError` where Verilator or Yosys is missing or out of time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        design.place(folder)

        def ask(tool: str, arguments: list[str]) -> Ran:
            return tools.run(tools.find(tool), arguments, folder, seconds, statuses=None)

        ran = {
            "verilator": ask("verilator", ["--lint-only", "-Wall", "--timing", *design.verilator()]),
            "yosys": tools.yosys([*design.yosys(), "proc", "check"], folder, seconds, statuses=None),
        }
        if tools.available("icarus"):
            ran["icarus"] = ask("icarus", ["-t", "null", "-Wall", *design.icarus()])
        if tools.available("slang"):
            ran["slang"] = ask("slang", design.slang())
    found = [finding for tool, each in ran.items() for finding in _findings(tool, each, design.names)]
    return list(dict.fromkeys(found))


def _findings(tool: str, ran: Ran, names: dict[str, str]) -> Iterator[Finding]:
    pattern = {"verilator": _VERILATOR, "yosys": _YOSYS}.get(tool, _PLACED)
    count = 0
    for line in ran.lines:
        match = pattern.match(line)
        if match is None or "Exiting due to" in line:
            continue
        part = match.groupdict()
        code = part.get("code") or ("error" if "error" in part["kind"].lower() else "warning")
        message = part["message"] or part["kind"]
        file = part["file"] and names.get(part["file"], part["file"])
        yield Finding(tool, file, int(part["line"]) if part["line"] else None, code, message)
        count += 1
    if ran.status and not count:  # it failed in words that no pattern knows: never a clean design
        yield Finding(tool, None, None, "error", tools.first_error(ran.output, ran.status, names))
