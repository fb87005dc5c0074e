"""How much of a whole checkpoint can be saved at what loss: the paper's 40.74 %, and 62 %.

Run: GOSSAMER_DATA=… python benchmarks/savings.py [MODEL ...]   (default: tiny-lm, SmolLM2-135M)
Writes benchmarks/results/savings.json and savings.md.

Widths are searched within the bytes that the saving leaves of the checkpoint at 16 bits (scales, embeddings and head
count), and the plan is carried out by `optimize`'s default technique. Perplexity is of a part of the data that no step
has seen, paired with the unchanged model's.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from allocation import contestants, test_of
from gossamer.core.files import write_json, write_text
from gossamer.core.progress import Progress
from gossamer.search.opening import open_job
from gossamer.search.optimize import profile
from gossamer.search.outcome import environment
from gossamer.search.request import OptimizeRequest
from gossamer.search.steps import allocated
from gossamer.search.units import assignment_of, mean_bits

RESULTS = Path(__file__).parent / "results"
TARGETS = {0.4074: 0.002, 0.62: 0.06}
"""Share of the bytes saved → relative increase of perplexity that is aimed at, at most."""


def rows_of(name: str, source: dict[str, str | None], effort: str, on: str, progress: Progress) -> list[dict]:
    """A row for each saving."""
    rows = []
    out = Path(".cache/benchmarks/savings") / name
    job = open_job(OptimizeRequest(out=out, ratio=1.0, effort=effort, on=on, **source), progress)
    job = replace(job, parts=replace(job.parts, test=test_of(job)))
    trials, sensitivity = profile(job)
    for saving, target in TARGETS.items():
        limit = int((1 - saving) * job.dense_bytes)
        chosen = assignment_of(job.units, allocated(job, trials, sensitivity, job.room_within(limit)).chosen)
        score = job.score(job.applier(job.steps(chosen), progress).tensors, "test")
        before = job.score({}, "test").loss
        value, low, high = increase(before, score.loss, score.weight)
        rows.append(
            {
                "model": name,
                "saving": 1 - job.bytes_of(chosen) / job.dense_bytes,
                "asked": saving,
                "weight_bytes": job.bytes_of(chosen),
                "mean_bits": mean_bits(job.opened.hierarchy, chosen),
                "perplexity_before": float(np.exp(job.scorer("test").baseline_loss)),
                "perplexity_after": float(np.exp(score.mean_loss)),
                "increase": value,
                "interval": [low, high],
                "target": target,
                "n": len(score.loss),
                "protocol": {k: v for k, v in job.parts.test.protocol.items() if k != "data"},
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def increase(before: np.ndarray, after: np.ndarray, weight: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Relative increase of perplexity with 2.5 and 97.5 percentiles, resampling windows in pairs."""
    change = (after - before) * weight
    picks = np.random.default_rng(seed).integers(len(weight), size=(2000, len(weight)))
    drawn = np.expm1(change[picks].sum(1) / weight[picks].sum(1))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.expm1(change.sum() / weight.sum())), float(low), float(high)


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| model | saved | bits a weight | perplexity | increase [95 %] | aim |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['model']} | {row['saving']:.2%} | {row['mean_bits']:.2f} | {row['perplexity_before']:.2f} → "
            f"{row['perplexity_after']:.2f} | {row['increase']:+.2%} [{low:+.2%}, {high:+.2%}] | "
            f"≤ {row['target']:+.1%}: {'met' if row['increase'] <= row['target'] else 'missed'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="tiny-lm, SmolLM2-135M")
    parser.add_argument("--effort", default="quick", choices=["quick", "standard", "thorough"])
    parser.add_argument("--on", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    known = {"tiny-lm": {"model": "tiny-lm"}, **contestants()}
    file = RESULTS / "savings.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    command = f"python benchmarks/savings.py --effort {arguments.effort}"  # rows do not depend on each other
    with Progress() as progress:
        for name in arguments.models or [name for name in ("tiny-lm", "SmolLM2-135M") if name in known]:
            fresh = rows_of(name, known[name], arguments.effort, arguments.on, progress)
            kept = [row for row in kept if row["model"] != name] + fresh
            write_json(file, {"command": command, "environment": environment(), "rows": kept})
            write_text(RESULTS / "savings.md", f"`{command}`\n\n{table(kept)}\n")


if __name__ == "__main__":
    main()
