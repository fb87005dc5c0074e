"""Fills the result tables of README.md and docs: writes benchmarks/results/demo.md from the demo run, includes all.

A table goes between `<!-- table: FILE -->` and `<!-- end of table -->`. Run it after `make demo`:
`python benchmarks/readme_table.py [RUN]`.
"""

import re
import sys
from pathlib import Path

from gossamer.core.errors import GossamerError
from gossamer.core.files import write_text
from gossamer.core.outcome import Measure
from gossamer.core.units import format_bytes
from gossamer.report.schema import Result, Side

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def number(key: str, measure: Measure | None) -> str:
    """A measured value with its interval, in people's units."""
    if measure is None:
        return "–"
    if key.endswith("_bytes"):
        return format_bytes(measure.value)
    if key.endswith("_percent"):
        return f"{measure.value:.1f} %"
    percent = key in ("accuracy", "ap50")
    form = (lambda value: f"{100 * value:.1f} %") if percent else (lambda value: f"{value:.3g}")
    return f"{form(measure.value)} [{form(measure.low)}, {form(measure.high)}]"


def demo_table(result: Result) -> str:
    """The before/after table of one run, as Markdown."""
    after = Side(label="Gossamer", measured=result.measured)
    sides = [("16 bits", result.baseline), (f"Gossamer at {budget(result)}", after)]
    if result.uniform is not None:
        sides.append((f"best uniform, {result.uniform.label}", result.uniform))
    rows = [
        (result.task.label or result.task.metric, result.task.metric),
        ("weights as stored", "weight_bytes"),
        ("saved against 16 bits", "saving_percent"),
    ]
    lines = [
        "| " + " | ".join([f"`{result.model.name}`", *(name for name, _ in sides)]) + " |",
        "|---" + "|---:" * len(sides) + "|",
    ]
    for name, key in rows:
        lines.append("| " + " | ".join([name, *(number(key, side.measured.get(key)) for _, side in sides)]) + " |")
    figure = result.measured.get(result.task.metric)
    count = f", n = {figure.n:,}, 95 % intervals" if figure else ""
    lines += ["", f"Measured on {tested_on(result)}{count}; `{result.command or 'make demo'}`."]
    return "\n".join(lines) + "\n"


def budget(result: Result) -> str:
    """What was asked for."""
    size = result.budget.weight_bytes
    return format_bytes(size) if size is not None else f"at most {result.budget.max_loss_percent:g} % loss"


def tested_on(result: Result) -> str:
    """The data behind the final figures."""
    for use in result.data:
        if use.role == "final test":
            return f"{use.name}{f' ({use.split})' if use.split else ''}, which the search never saw"
    return f"{result.task.name} data"


def include(text: str) -> str:
    """The text with every marked table replaced by its file's content."""

    def insert(match: re.Match[str]) -> str:
        file = ROOT / match[2]
        table = file.read_text(encoding="utf-8").strip() + "\n" if file.exists() else ""
        return match[1] + table + match[3]

    return MARKED.sub(insert, text)


def main() -> None:
    """Writes the demo's table and includes every table."""
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "demo"
    found = run / "result.json"
    if not found.exists():
        sys.exit(f"error: {found} does not exist: run `make demo` first, or name another run folder")
    write_text(ROOT / "benchmarks" / "results" / "demo.md", demo_table(Result.model_validate_json(found.read_bytes())))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if include(text) != text:
            write_text(page, include(text))


if __name__ == "__main__":
    try:
        main()
    except GossamerError as error:
        sys.exit(f"error: {error}")
