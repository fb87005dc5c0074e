"""What an optimised model is like to use: the runs of `make demo` and `make demo-llm`, before and after.

Run: python benchmarks/optimised.py [RUN ...] [--threads N] [--rounds 3]      (default: runs/demo runs/demo-llm)
Writes benchmarks/results/optimised.json and optimised.md, in which rows of other models stay.

The model as it came, in torch (transformers' code, 32-bit floats) and in the native engine, and the run's checkpoint in
the native engine take turns, each a process of its own: a prompt of 128 tokens, or a question about a scene, then new
tokens, several times. A figure is the median of the rounds, a ratio that of the ratios within each round. Quality is
the run's own final figure, on data that its search never saw.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from environments import Json, in_process, python_of
from gossamer.core.files import write_json, write_text
from gossamer.core.units import format_bytes
from gossamer.report.schema import Result
from gossamer.search.outcome import environment
from readme_table import number, tested_on

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORKER = ROOT / "benchmarks" / "engines" / "answering.py"
RUNS = (Path("runs/demo"), Path("runs/demo-llm"))
KEYS = ("first_token_ms", "tokens_per_s", "peak_memory_bytes")


def contest(run: Path, result: Result, options: argparse.Namespace) -> list[Json]:
    """The rows of one run."""
    source = result.model.name if "/" not in result.model.name else str(ROOT / result.model.name)
    metric = result.task.metric
    sides = {
        "before, torch": (source, "torch", result.baseline.measured),
        "before, native": (source, "native", result.baseline.measured),
        "after, native": (str((run / "checkpoint").resolve()), "native", result.measured),
    }
    found: dict[str, list[Json]] = {side: [] for side in sides}
    for turn in range(options.rounds):
        for side, (ref, engine, _) in sides.items():
            task = {"ref": ref, "engine": engine, "image": result.task.name == "vqa"}
            task |= {"new": options.new, "repetitions": 5, "threads": options.threads}
            with tempfile.TemporaryDirectory() as folder:
                write_json(Path(folder) / "task.json", task)
                found[side].append(in_process(python_of(None), WORKER, Path(folder), options.threads))
            print(run, turn, side, found[side][-1], flush=True)
    last, rows = found["after, native"], []
    for side, (_, _, measured) in sides.items():
        row: Json = {"model": Path(result.model.name).name, "side": side, "metric": metric, "data": tested_on(result)}
        row |= {"quality": number(metric, measured[metric]), "weight_bytes": measured["weight_bytes"].value}
        row |= {key: statistics.median(each[key] for each in found[side]) for key in KEYS}
        row["ratios"] = {
            key: statistics.median(mine[key] / other[key] for mine, other in zip(last, found[side], strict=True))
            for key in KEYS
        }
        rows.append(row)
    return rows


def table(rows: list[Json], command: str) -> str:
    """Markdown."""
    lines = [
        f"`{command}`; in brackets the optimised model's by this one's.",
        "",
        "| model | side | weights | quality [95 %] | first token after | tokens/s | peak memory |",
        "|---|---|---:|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{form} ({row['ratios'][key]:.2f})"
            for key, form in zip(
                KEYS,
                (f"{row[KEYS[0]]:.1f} ms", f"{row[KEYS[1]]:.0f}", format_bytes(row[KEYS[2]])),
                strict=True,
            )
        ]
        cells = [format_bytes(row["weight_bytes"]), f"{row['metric']} {row['quality']}", *cells]
        lines.append(f"| {row['model']} | {row['side']} | {' | '.join(cells)} |")
    data = {row["model"]: row["data"] for row in rows}
    return "\n".join([*lines, "", "Quality: " + "; ".join(f"{model} on {on}" for model, on in data.items()) + ".", ""])


def main() -> None:
    """Measures all runs that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, default=[ROOT / run for run in RUNS])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    file = RESULTS / "optimised.json"
    kept: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    command = f"python benchmarks/optimised.py --threads {options.threads}"
    for run in options.runs:
        if not (run / "result.json").exists():
            print(f"skipped: {run} has no result (make demo, make demo-llm)", file=sys.stderr)
            continue
        rows = contest(run, Result.model_validate_json((run / "result.json").read_bytes()), options)
        kept = [row for row in kept if row["model"] != rows[0]["model"]] + rows
        write_json(file, {"command": command, "environment": environment(), "rows": kept})
        write_text(RESULTS / "optimised.md", table(kept, command))
    print(table(kept, command))


if __name__ == "__main__":
    main()
