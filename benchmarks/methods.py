"""Every technique at 2, 3 and 4 bits in groups of 64, on the same model, calibration data and test data.

Run: python benchmarks/methods.py [MODEL ...]   (default: tiny-lm tiny-vlm)
Writes benchmarks/results/methods.json and methods.md.

The techniques are applied as `gossamer apply PRESET` does, on every plain linear layer of the blocks, the projector and
an untied head; `awq+gptq` scales as AWQ does and rounds as GPTQ does. Loss is in nats per answer or token on the test
part, which no technique saw; the change against the 16-bit model is paired over positions, with a bootstrap interval.
Time is that of the quantisation alone, its ratio that to GPTQ's.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.compress.apply import apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.core.files import write_json, write_text
from gossamer.core.plan import Step
from gossamer.evaluate.intervals import paired_mean
from gossamer.models.accounting import account
from gossamer.models.open import open_model
from gossamer.models.packed import Scheme
from gossamer.search.job import Job
from gossamer.search.optimize import open_job
from gossamer.search.outcome import environment
from gossamer.search.request import OptimizeRequest

RESULTS = Path(__file__).parent / "results"
TECHNIQUES = ("rtn", "awq", "awq+gptq", "gptq", "qronos", "signround")
BITS = (2, 3, 4)


def steps_for(technique: str, bits: int, job: Job) -> tuple[Step, ...]:
    """The steps of a uniform setting."""
    steps = preset_steps(f"{technique.split('+')[0]}-w{bits}g64", job.opened.hierarchy)
    if technique == "awq+gptq":
        return tuple(Step.model_validate({**dict(step), "rounding": "gptq"}) for step in steps)
    return steps


def losses(job: Job, model: Any) -> np.ndarray:
    """The loss in nats of each position of the test part."""
    found = []
    for batch in job.parts.test.batches(job.batch):
        log_probs = job.parts.test.log_probs(model(**batch.inputs), batch)
        found.append(job.parts.test.losses(log_probs, batch).double().numpy())
    return np.concatenate(found)


def table_of(model: str) -> list[dict[str, Any]]:
    """The rows of one model."""
    import torch

    job = open_job(
        OptimizeRequest(model=model, out=Path(".cache/benchmarks/methods") / model, ratio=1.0, effort="standard")
    )
    rows = []
    with torch.inference_mode():
        reference = losses(job, job.opened.model)
    for bits in BITS:
        for technique in TECHNIQUES:
            opened = open_model(model)
            steps = steps_for(technique, bits, job)
            start = time.perf_counter()
            done = apply_steps(opened.model, opened.hierarchy, steps, job.calibration)
            seconds = time.perf_counter() - start
            with torch.inference_mode():
                change = paired_mean(reference, losses(job, opened.model), over="positions")
            schemes: dict[str, Scheme] = {path: tensor.scheme for path, tensor in done.tensors.items()}
            rows.append(
                {
                    "model": model,
                    "bits": bits,
                    "technique": technique,
                    "loss_16_bit": float(reference.mean()),
                    "loss_change": change.model_dump(),
                    "weight_bytes": account(opened, schemes).weight_bytes,
                    "seconds": seconds,
                    "calibration": job.parts.counts["calibrate"],
                }
            )
            print(json.dumps({key: rows[-1][key] for key in ("model", "bits", "technique", "seconds")}), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | bits | technique | bytes | Δ loss, nats [95 %] | time by GPTQ's |",
        "|---|---|---|---|---|---|",
    ]
    base = {(row["model"], row["bits"]): row["seconds"] for row in rows if row["technique"] == "gptq"}
    for row in rows:
        change = row["loss_change"]
        lines.append(
            f"| {row['model']} | {row['bits']} | {row['technique']} | {row['weight_bytes']:,} | "
            f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}] | "
            f"{row['seconds'] / base[row['model'], row['bits']]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the contest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny-lm", "tiny-vlm"])
    models = parser.parse_args().models
    rows = [row for model in models for row in table_of(model)]
    command = " ".join(["python benchmarks/methods.py", *(models if models != ["tiny-lm", "tiny-vlm"] else [])])
    write_json(RESULTS / "methods.json", {"command": command, "environment": environment(), "rows": rows})
    write_text(RESULTS / "methods.md", f"`{command}`\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
