"""Gossamer against the field's tools: the same model, calibration samples, bits and judge, a process for each side.

    GOSSAMER_DATA=… python benchmarks/peers.py
    GOSSAMER_DATA=… python benchmarks/peers.py --fast          a quarter of the iterations for all sides that learn

SmolLM2-135M-Instruct; calibration on WikiText-2 validation, judged on WikiText-2 test. The linear layers of the blocks
are rounded, embeddings and head are not; groups of 64 (128 does not divide the width of 576), symmetric where the tool
offers it. The weights of this model lie on a 4-bit asymmetric grid in groups of 32; no side's grid is that one.

Every peer lives in an environment of its own under `.cache/peers`, which is made on the first run; `benchmarks/peers/`
holds a script for each. A side that cannot be installed or fails is a row that says so. Results are kept under
`.cache/benchmarks/peers`, so that an interrupted contest goes on where it stopped.

Bytes are those of the blocks' linear layers in the checkpoint that each tool writes: codes, scales, zero points and
whatever else it stores for them, floating values counted as 16 bits. Time is that of the quantisation call, on one
process; peak memory is the process's, model and libraries included.

Rows of other runs with the same samples, windows and settings stay in benchmarks/results/peers.json and peers.md, with
the ratios of their own run.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from environments import REQUIREMENTS, Json, in_process, python_of, unavailable
from gossamer.core.files import digest, file_digest, write_json, write_text
from gossamer.core.outcome import Measure
from gossamer.evaluate.intervals import bootstrap_ratio, paired_mean
from models import smollm2

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks" / "peers"
KEPT = ROOT / ".cache" / "benchmarks" / "peers"
RESULTS = ROOT / "benchmarks" / "results" / "peers"


@dataclass(frozen=True)
class Side:
    """A tool and a method of it. `mixed`: its bits are an average; `environment` None is our own."""

    name: str
    script: str
    environment: str | None
    bits: tuple[int, ...] = ()
    mixed: bool = False
    learns: bool = False
    rounds_activations: bool = False


REFERENCE, AVERAGED = "llm-compressor gptq", "auto-round autoscheme"
"""The sides that time and memory are compared with: at whole bits, and at an average."""

SIDES = (
    Side(REFERENCE, "with_llm_compressor", "llmcompressor", (2, 3, 4, 8)),
    Side("llm-compressor awq", "with_llm_compressor", "llmcompressor", (2, 3, 4)),
    Side("llm-compressor smoothquant", "with_llm_compressor", "llmcompressor", (8,), rounds_activations=True),
    Side("auto-round", "with_auto_round", "llmcompressor", (2, 3, 4), learns=True),
    Side("gptqmodel", "with_gptqmodel", "gptqmodel", (2, 3, 4, 8)),
    Side("torchao", "with_torchao", "torchao", (2, 3, 4, 8)),
    Side("torchao hqq", "with_torchao", "torchao", (2, 3, 4)),
    Side("gossamer rtn", "with_gossamer", None, (2, 3, 4, 8)),
    Side("gossamer hqq", "with_gossamer", None, (2, 3, 4)),
    Side("gossamer smoothquant", "with_gossamer", None, (8,), rounds_activations=True),
    Side("gossamer gptq", "with_gossamer", None, (2, 3, 4, 8)),
    Side("gossamer qronos", "with_gossamer", None, (2, 3, 4)),
    Side("gossamer awq", "with_gossamer", None, (2, 3, 4)),
    Side("gossamer signround", "with_gossamer", None, (2, 3, 4), learns=True),
    Side(AVERAGED, "with_auto_round", "llmcompressor", mixed=True, learns=True),
    Side("gossamer optimize gptq", "with_gossamer", None, mixed=True),
    Side("gossamer optimize qronos", "with_gossamer", None, mixed=True),
    Side("gossamer optimize signround", "with_gossamer", None, mixed=True, learns=True),
)


def main() -> None:
    """Runs the contest and writes the JSON and the table after every result."""
    options = parsed()
    contest = Contest.prepared(options)
    baseline = contest.baseline()
    rows: list[Json] = []
    for side, bits in entries(options):
        rows.append({"side": side.name, "bits": bits, **contest.result(side, bits, rows)})
        shown = {key: value for key, value in rows[-1].items() if key != "window_losses"}
        print(json.dumps(shown), file=sys.stderr, flush=True)
        write(options, baseline, rows)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4, 3], choices=[2, 3, 4, 8])
    parser.add_argument("--average-bits", type=float, nargs="*", default=[3.5], help="scales included")
    parser.add_argument("--sides", nargs="*", choices=[side.name for side in SIDES], help="default: all")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="samples at a time, in calibration and in learning")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--fast", action="store_true", help="a quarter of the iterations")
    parser.add_argument("--eval-windows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path, help="another Llama's directory (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--again", action="store_true", help="ignore what is kept from earlier runs")
    options = parser.parse_args()
    options.iterations = max(1, options.iterations // 4) if options.fast else options.iterations
    options.batch = min(options.batch, options.samples)
    return options


def entries(options: argparse.Namespace) -> Iterator[tuple[Side, float]]:
    """Every (side, bits) of the contest, in the order of the table; what others are compared with comes first."""
    chosen = [side for side in SIDES if options.sides is None or side.name in options.sides]
    for bits in options.bits:
        yield from ((side, bits) for side in chosen if bits in side.bits)
    for average in options.average_bits:
        yield from ((side, average) for side in chosen if side.mixed)


@dataclass(frozen=True)
class Contest:
    """What all sides share. `samples` and `tests` are windows of token ids."""

    options: argparse.Namespace
    model: Path
    samples: list[list[int]]
    tests: list[list[int]]

    @classmethod
    def prepared(cls, options: argparse.Namespace) -> "Contest":
        """The contest on the texts in `GOSSAMER_DATA`."""
        data = os.environ.get("GOSSAMER_DATA")
        if not data:
            print("skipped: set GOSSAMER_DATA to the folder that holds wikitext-2/valid.txt and test.txt")
            sys.exit()
        model = (options.model or smollm2()).resolve()
        texts = ((Path(data) / "wikitext-2" / f"{name}.txt").read_text(encoding="utf-8") for name in ("valid", "test"))
        counts = (options.samples, options.eval_windows)
        return cls(options, model, *(windows(model, t, n, options.context) for t, n in zip(texts, counts, strict=True)))

    @cached_property
    def fingerprint(self) -> list[str]:
        """What every result depends on: the model's weights, the windows, and how they are judged."""
        judged = [file_digest(SCRIPTS / "evaluate.py"), file_digest(SCRIPTS / "common.py")]
        return [file_digest(self.model / "model.safetensors"), digest(self.samples), digest(self.tests), *judged]

    def baseline(self) -> Json:
        """The unrounded model's losses."""
        return self.kept("16 bits", [], lambda folder: self.judged(folder, False))

    def result(self, side: Side, bits: float, before: list[Json]) -> Json:
        """What a side did, or why it did not; `before` are the rows so far."""
        limit = None
        if side.mixed and side.name != AVERAGED:
            rival = [row for row in before if row["side"] == AVERAGED and row["bits"] == bits and "failed" not in row]
            if not rival:
                return {"failed": f"it takes its bytes from {AVERAGED}, which has no result"}
            limit = rival[0]["stored_bytes"]
        task = {
            "model": str(self.model),
            "side": side.name,
            "bits": bits,
            "group": self.options.group,
            "batch": self.options.batch,
            "iterations": self.options.iterations if side.learns else 0,
            "stored_bytes": limit,
            "threads": self.options.threads,
        }
        script = SCRIPTS / f"{side.script}.py"
        made_of = package_digest() if side.environment is None else REQUIREMENTS[side.environment]
        named = {**task, "model": self.model.name}

        def compute(folder: Path) -> Json:
            problem = unavailable(side.environment)
            if problem is not None:
                return {"failed": problem}
            write_json(folder / "task.json", task)
            write_json(folder / "calibration.json", self.samples)
            load = round(os.getloadavg()[0], 2)
            found = in_process(python_of(side.environment), script, folder, self.options.threads)
            if "failed" in found:
                return found
            return {**found, "load_before": load, **self.judged(folder, side.rounds_activations)}

        return self.kept(f"{side.name} {bits:g}", [named, file_digest(script), made_of], compute)

    def judged(self, folder: Path, round_activations: bool) -> Json:
        """The losses of the model with the weights in `folder`."""
        options = self.options
        asked = {"model": str(self.model), "threads": options.threads, "round_activations": round_activations}
        write_json(folder / "judge.json", asked)
        write_json(folder / "test.json", self.tests)
        return in_process(python_of(None), SCRIPTS / "evaluate.py", folder, options.threads)

    def kept(self, name: str, inputs: Any, compute: Callable[[Path], Json]) -> Json:
        """The result of this name and these inputs, from disk if it is there. Failures are not kept."""
        file = KEPT / f"{name.replace(' ', '-')}-{digest(self.fingerprint, inputs)}.json"
        if file.exists() and not self.options.again:
            return json.loads(file.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            found = compute(Path(folder))
        if "failed" not in found:
            write_json(file, found)
        return found


def windows(model: Path, text: str, count: int, context: int) -> list[list[int]]:
    """The first `count` windows of `context` tokens, none of which overlap."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text[: count * context * 12]).input_ids
    return [ids[start : start + context] for start in range(0, count * context, context)]


@cache
def package_digest() -> str:
    """A key of our own source text: results of another state of it are not reused."""
    return digest([file_digest(file) for file in sorted((ROOT / "src" / "gossamer").rglob("*.py"))])


def write(options: argparse.Namespace, baseline: Json, rows: list[Json]) -> None:
    """The report with intervals and ratios, as JSON and as the table for the docs."""
    done = [row | compared(row, rows, baseline) if "failed" not in row else row for row in rows]
    fresh = {(row["side"], row["bits"]) for row in done}
    done += [row for row in rows_before(options, baseline) if (row["side"], row["bits"]) not in fresh]
    names = [side.name for side in SIDES]
    done.sort(key=lambda row: (-row["bits"], names.index(row["side"])))
    text = command(options)
    report = {
        "command": text,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": options.threads},
        "data": "WikiText-2 valid (calibration) and test (judge), non-overlapping windows from the start",
        "settings": settings(options),
        "ratios": f"to {REFERENCE} of the same bits; at an average, to {AVERAGED}",
        "baseline": {"perplexity": perplexity(baseline).model_dump(), **baseline},
        "rows": done,
    }
    write_json(RESULTS.with_suffix(".json"), report)
    write_text(RESULTS.with_suffix(".md"), table(options, baseline, done, text))


def settings(options: argparse.Namespace) -> Json:
    """What rows of one table share."""
    return {key: getattr(options, key) for key in ("group", "samples", "context", "batch", "iterations")}


def rows_before(options: argparse.Namespace, baseline: Json) -> list[Json]:
    """The rows in the report so far, if they are of the same settings, model and test windows."""
    file = RESULTS.with_suffix(".json")
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if report.get("settings") != settings(options):
        return []
    losses = report["baseline"]["window_losses"]
    same = len(losses) == len(baseline["window_losses"]) and np.allclose(losses, baseline["window_losses"], atol=1e-4)
    return list(report["rows"]) if same else []


def perplexity(found: Json) -> Measure:
    """With a bootstrap over windows, all of which have as many tokens."""
    losses = found["window_losses"]
    return bootstrap_ratio(losses, [1.0] * len(losses), np.exp, over="windows")


def compared(row: Json, rows: list[Json], baseline: Json) -> Json:
    """A row's figures beside the 16-bit model's and beside those of the side it is compared with."""
    averaged = any(side.name == row["side"] and side.mixed for side in SIDES)
    name = AVERAGED if averaged else REFERENCE
    reference = next((r for r in rows if r["side"] == name and r["bits"] == row["bits"] and "failed" not in r), None)
    change = paired_mean(baseline["window_losses"], row["window_losses"], over="windows")
    figures: Json = {"perplexity": perplexity(row).model_dump(), "loss_change": change.model_dump()}
    if reference is not None:
        figures["cpu_time_ratio"] = row["cpu_seconds"] / reference["cpu_seconds"]
        figures["peak_memory_ratio"] = row["peak_bytes"] / reference["peak_bytes"]
    return figures


def command(options: argparse.Namespace) -> str:
    """The command line that gives this report; `--bits` and `--sides` choose rows, which stand by themselves."""
    words = ["python benchmarks/peers.py"]
    for name in ("samples", "context", "batch", "group", "iterations", "eval_windows"):
        words.append(f"--{name.replace('_', '-')} {getattr(options, name)}")
    if options.model is not None:
        words.append("--model …")
    return " ".join([*words, f"--threads {options.threads}"])


def table(options: argparse.Namespace, baseline: Json, rows: list[Json], text: str) -> str:
    """The Markdown table and what must be known to read it."""
    model = options.model.name if options.model else "SmolLM2-135M-Instruct"
    plain = perplexity(baseline)
    lines = [
        f"{model}, groups of {options.group}, {options.samples} × {options.context} calibration tokens (WikiText-2",
        f"valid), {options.eval_windows} × {options.context} tokens of WikiText-2 test; unrounded perplexity "
        f"{plain.value:.2f} [{plain.low:.2f}, {plain.high:.2f}].",
        "Differences are paired over windows.",
        "",
        "| side | bits | bytes | perplexity | Δ loss, nats [95 %] | CPU time | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['side']} | {row['bits']} | — | no result: {row['failed']} | — | — | — |")
            continue
        change = row["loss_change"]
        cells = (
            row["side"],
            row["bits"],
            f"{row['stored_bytes']:,}",
            f"{row['perplexity']['value']:.2f}",
            f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]",
            ratio(row, "cpu_time_ratio"),
            ratio(row, "peak_memory_ratio"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "Bytes: the blocks' linear layers in the checkpoint that each tool writes, floating values as 16 bits. CPU",
        f"time and peak memory: ratios to {REFERENCE} of the same bits, at an average to {AVERAGED}.",
        "Where a side rounds activations too, the judge rounds them for it, to 8 bits with a scale for each token.",
        "",
        *remarks(rows),
        "",
        f"`GOSSAMER_DATA=… {text}`",
    ]
    return "\n".join(lines) + "\n"


def remarks(rows: list[Json]) -> list[str]:
    """The settings of each side, once for all bits that share them."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "note" in row:
            found.setdefault((row["side"], row["note"]), []).append(f"{row['bits']:g}")
    return [f"- {side} ({', '.join(bits)} bits): {note}." for (side, note), bits in found.items()]


def ratio(row: Json, key: str) -> str:
    """A ratio, if there is one."""
    return f"{row[key]:.2f}" if key in row else "—"


if __name__ == "__main__":
    main()
