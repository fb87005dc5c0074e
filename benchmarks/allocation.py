"""Equal-bytes contest: Gossamer's searched plan against uniform GPTQ and against an evolution like EvoPress's, on data
that no search ever saw. AutoRound's AutoScheme, which wants an environment of its own, is met in peers.py.

Run: python benchmarks/allocation.py [MODEL ...]   (default: every model that is at hand)
Writes benchmarks/results/allocation.json and allocation.md.

For each model and each uniform setting the budget is exactly that setting's bytes. All plans are really applied (GPTQ,
same calibration data) and scored on the test part: the increase of the task loss and the divergence from the 16-bit
model, with a paired bootstrap interval for the ratio. The evolution starts from the uniform plan, chooses among the
same candidates and measures whole plans on the data that the exact search refines on.
"""

import argparse
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from gossamer.compress.presets import uniform_schemes
from gossamer.core.files import write_json, write_text
from gossamer.core.progress import Progress
from gossamer.evaluate.task import Task
from gossamer.evaluate.tasks import open_task
from gossamer.models.packed import Scheme
from gossamer.search.job import Job
from gossamer.search.opening import open_job
from gossamer.search.optimize import profile
from gossamer.search.outcome import environment
from gossamer.search.request import OptimizeRequest
from gossamer.search.steps import allocated, searched
from gossamer.search.units import assignment_of, describe
from models import CACHE, smollm2

RESULTS = Path(__file__).parent / "results"
BUDGETS = (Scheme(2, 64), Scheme(3, 64), Scheme(4, 64))
TARGET = 0.8
POSITIONS = 12_000
"""Test tokens or answers at most: the unchanged model's log-probabilities are kept in memory."""


def contestants() -> dict[str, dict[str, str | None]]:
    """Name → model, task, data. Models that are not at hand are left out and named on standard output."""
    found: dict[str, dict[str, str | None]] = {"tiny-vlm": {"model": "tiny-vlm"}}
    data = os.environ.get("GOSSAMER_DATA")
    if data is None:
        print("skipped: stories260K and SmolLM2-135M need GOSSAMER_DATA")
        return found
    found["stories260K"] = {
        "model": str(Path(data) / "stories260K" / "stories260K.bin"),
        "task": "text",
        "data": os.path.relpath(tinystories(Path(data))),
    }
    found["SmolLM2-135M"] = {
        "model": str(smollm2()),
        "task": "text",
        "data": str(Path(data) / "wikitext-2" / "valid.txt"),
        "test_data": str(Path(data) / "wikitext-2" / "test.txt"),
    }
    return found


def tinystories(data: Path) -> Path:
    """The first 400 kB of the TinyStories training text, as a file of its own."""
    target = CACHE / "tinystories.txt"
    if not target.exists():
        with zipfile.ZipFile(data / "tinystories.zip") as archive:
            text = archive.read("v2_train_head.txt").decode("utf-8")[:400_000]
        write_text(target, text)
    return target


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, weight: np.ndarray, seed: int = 0) -> list[float]:
    """2.5 and 97.5 percentiles of the ratio of weighted means, resampling examples in pairs."""
    random = np.random.default_rng(seed)
    picks = random.integers(len(weight), size=(2000, len(weight)))
    top, bottom = (numerator * weight)[picks].sum(1), (denominator * weight)[picks].sum(1)
    return np.percentile(top / bottom, [2.5, 97.5]).tolist()


def contest(name: str, source: dict[str, str | None], effort: str, on: str, progress: Progress) -> list[dict]:
    """The rows of one model."""
    rows = []
    out = Path(".cache/benchmarks/allocation") / name
    for scheme in BUDGETS:
        request = OptimizeRequest(out=out, ratio=1.0, effort=effort, technique="gptq", on=on, **source)
        job = open_job(request, progress)
        job = replace(job, parts=replace(job.parts, test=test_of(job)))
        uniform = uniform_schemes(job.opened.hierarchy, scheme)
        limit = job.bytes_of(uniform)
        trials, sensitivity = profile(job)
        exact = allocated(job, trials, sensitivity, job.room_within(limit)).chosen
        chosen = assignment_of(job.units, exact)
        evolving = replace(job, request=replace(job.request, search="evolution"))
        evolved = assignment_of(job.units, searched(evolving, trials, sensitivity, job.room_within(limit), exact)[0])
        baseline = job.scorer("test").baseline_loss
        ours, theirs, others = (
            job.score(job.applier(job.steps(plan), progress).tensors, "test") for plan in (chosen, uniform, evolved)
        )
        rows.append(
            {
                "model": name,
                "budget": describe(scheme),
                "weight_bytes_uniform": limit,
                "weight_bytes_searched": job.bytes_of(chosen),
                "baseline_loss": baseline,
                "loss_increase_uniform": theirs.mean_loss - baseline,
                "loss_increase_searched": ours.mean_loss - baseline,
                "loss_increase_evolution": others.mean_loss - baseline,
                "kl_evolution": others.mean_kl,
                "kl_uniform": theirs.mean_kl,
                "kl_searched": ours.mean_kl,
                "kl_ratio": ours.mean_kl / theirs.mean_kl,
                "kl_ratio_interval": ratio_interval(ours.kl, theirs.kl, ours.weight),
                "loss_ratio": (ours.mean_loss - baseline) / (theirs.mean_loss - baseline),
                "loss_ratio_evolution": (ours.mean_loss - baseline) / (others.mean_loss - baseline),
                "kl_ratio_evolution": ours.mean_kl / others.mean_kl,
                "kl_ratio_evolution_interval": ratio_interval(ours.kl, others.kl, ours.weight),
                "n": len(ours.kl),
                "data": {**job.parts.test.protocol, "data": shown(job.parts.test.protocol["data"])},
            }
        )
        shown_keys = ("model", "budget", "kl_ratio", "loss_ratio", "kl_ratio_evolution", "loss_ratio_evolution")
        print(json.dumps({key: rows[-1][key] for key in shown_keys}), flush=True)
    return rows


def shown(source: str) -> str:
    """A data source without the folder of this machine that it lies in."""
    return source.removeprefix(f"{os.environ.get('GOSSAMER_DATA', '').rstrip('/')}/")


def test_of(job: Job) -> Task:
    """The test examples: of built-in sets more than an optimisation reads."""
    count = max(1, POSITIONS // int(job.parts.test.protocol.get("context_tokens", 1)))
    if job.parts.name == "vqa":
        return open_task("vqa", job.parts.data, job.opened, split="test", limit=count)
    return job.parts.test.subset(range(min(len(job.parts.test), count)))


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| model | bytes of | uniform GPTQ: Δ loss (KL) | searched: Δ loss (KL) | Δ loss ratio | KL ratio [95 %] "
        "| evolution: Δ loss (KL) | searched by evolution: Δ loss ratio, KL ratio [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["kl_ratio_interval"]
        lines.append(
            f"| {row['model']} | {row['budget']} | {row['loss_increase_uniform']:.4f} ({row['kl_uniform']:.4f}) | "
            f"{row['loss_increase_searched']:.4f} ({row['kl_searched']:.4f}) | {row['loss_ratio']:.2f} | "
            f"{row['kl_ratio']:.2f} [{low:.2f}, {high:.2f}] | {against_evolution(row)} |"
        )
    return "\n".join(lines)


def against_evolution(row: dict) -> str:
    """Two cells; rows of earlier runs may have none."""
    if "kl_evolution" not in row:
        return "not run | —"
    low, high = row["kl_ratio_evolution_interval"]
    return (
        f"{row['loss_increase_evolution']:.4f} ({row['kl_evolution']:.4f}) | "
        f"{row['loss_ratio_evolution']:.2f}, {row['kl_ratio_evolution']:.2f} [{low:.2f}, {high:.2f}]"
    )


def main() -> None:
    """Runs the contest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of the contestants to run")
    parser.add_argument("--effort", default="standard", choices=["quick", "standard", "thorough"])
    parser.add_argument("--on", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    known = contestants()
    file = RESULTS / "allocation.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    with Progress() as progress:
        for name in arguments.models or list(known):
            fresh = contest(name, known[name], arguments.effort, arguments.on, progress)
            kept = [row for row in kept if row["model"] != name] + fresh
            met = sum(row["loss_ratio"] <= TARGET for row in kept)
            rows = [row for row in kept if "kl_evolution" in row]
            beaten = sum(row["loss_ratio_evolution"] <= TARGET for row in rows)
            command = f"python benchmarks/allocation.py --effort {arguments.effort}"  # rows do not depend on each other
            summary = (
                f"{met} of {len(kept)} budgets meet the target ratio of {TARGET} (nats, test data) against uniform "
                f"GPTQ, {beaten} of {len(rows)} against the evolution."
            )
            write_json(file, {"command": command, "target": TARGET, "environment": environment(), "rows": kept})
            write_text(RESULTS / "allocation.md", f"`{command}`\n\n{table(kept)}\n\n{summary}\n")


if __name__ == "__main__":
    main()
