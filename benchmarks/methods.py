"""Every technique on the same model, calibration data and test data: rounding, pruning, factors, and chains of them.

Run: python benchmarks/methods.py [MODEL ...] [--only PRESET ...]   (default: tiny-lm tiny-vlm; with GOSSAMER_DATA also
SmolLM2-135M and stories260K). Writes benchmarks/results/methods.json and methods.md; rows of other runs stay.

Each row is a preset, applied as `gossamer apply PRESET` does: on every plain linear layer of the blocks, the projector
and, where it is quantised, an untied head. `awq/gptq` scales as AWQ does and rounds as GPTQ does. Loss is in nats per
answer or token on the test part, which no technique saw; the change against the 16-bit model is paired over positions,
with a bootstrap interval. Bytes are packed ones: codes, scales, factors, and for pruned weights a bit mask and the
values that stay, though no public container of compressed-tensors leaves zeros out. Time is CPU time of the compression
alone; its ratio is to `gptq-w3g64` on the same model in the same run.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from allocation import contestants
from gossamer.compress.apply import Applied, apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.core.files import write_json, write_text
from gossamer.core.plan import Step
from gossamer.evaluate.intervals import paired_mean
from gossamer.models.accounting import account
from gossamer.models.open import Opened, open_model
from gossamer.search.job import Job
from gossamer.search.optimize import open_job
from gossamer.search.outcome import environment
from gossamer.search.request import OptimizeRequest

RESULTS = Path(__file__).parent / "results"
ROUNDING = ("rtn", "hqq", "awq", "awq/gptq", "gptq", "gptaq", "qronos")
BASE = "gptq-w3g64"
PRUNING = ("magnitude", "wanda", "ria", "sparsegpt", "obr")
PRESETS = (
    *(f"{technique}-w{bits}g64" for bits in (2, 3, 4) for technique in ROUNDING),
    "omniquant-w3g64",
    "signround-w2g64",
    "signround-w3g64",
    *(f"rotate+gptq-w{bits}g64" for bits in (2, 3)),
    *(f"gptq-w{bits}g64+correction-r8" for bits in (2, 3)),
    "gptq-w2g64+heal",
    "gptq-w2g64+heal-reverse",
    "gptq-w2g64+heal-on_policy",
    "rtn-w8a8",
    "gptq-w8a8",
    "gptq-w8a8s",
    "smoothquant+gptq-w8a8",
    "gptq-w4g64a8",
    "gptq-fp8+activations-fp8",
    "rtn-mxfp4",
    "gptq-mxfp4",
    "gptq-mxfp4+activations-mxfp4",
    "rtn-nvfp4",
    "gptq-nvfp4",
    "gptq-nvfp4+activations-nvfp4",
    *(f"{technique}-{share}" for share in ("30", "50", "2:4") for technique in PRUNING),
    "permute+wanda-2:4",
    "permute+ria-2:4",
    *(f"{technique}-50+gptq-w4g64" for technique in PRUNING),
    "low_rank-r32",
    "losparse-r8",
    "losparse-r8+gptq-w4g64",
    "prune_channels-75",
    *(f"prune_{what}-80-{kind}" for what in ("channels", "heads") for kind in ("taylor", "taylor2", "learned")),
)


def steps_for(preset: str, job: Job) -> tuple[Step, ...]:
    """The steps of a preset."""
    name, _, setting = preset.partition("-")
    scaled = name == "awq/gptq"
    steps = preset_steps(f"awq-{setting}" if scaled else preset, job.opened.hierarchy)
    return tuple(Step.model_validate({**dict(step), "rounding": "gptq"}) for step in steps) if scaled else steps


def packed_bytes(opened: Opened, done: Applied) -> int:
    """Bytes of the whole model in the densest form of each part."""
    size = account(opened, {path: tensor.scheme for path, tensor in done.tensors.items()}).weight_bytes
    layers = {layer.path: layer for layer in done.hierarchy.layers()}
    for path, mask in done.masks.items():
        bits = done.tensors[path].scheme.bits if path in done.tensors else 16
        size -= (mask.numel() - int(mask.sum())) * bits // 8 - mask.numel() // 8
    for path, part in done.low_ranks.items():
        replaced = path not in done.tensors and path not in done.masks
        size += part.bytes - (2 * layers[path].rows * layers[path].columns if replaced else 0)
    return size


def losses(job: Job, model: Any) -> np.ndarray:
    """The loss in nats of each position of the test part."""
    found = []
    for batch in job.parts.test.batches(job.batch):
        log_probs = job.parts.test.log_probs(model(**batch.inputs), batch)
        found.append(job.parts.test.losses(log_probs, batch).double().numpy())
    return np.concatenate(found)


def rows_of(name: str, source: dict[str, str | None], presets: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of one model, one after another."""
    import torch

    out = Path(".cache/benchmarks/methods") / name
    job = open_job(OptimizeRequest(out=out, ratio=1.0, effort="standard", **source))
    base = None
    with torch.inference_mode():
        reference = losses(job, job.opened.model)
    for preset in (BASE, *(preset for preset in presets if preset != BASE)):
        opened = open_model(str(source["model"]))
        start = time.process_time()
        done = apply_steps(opened.model, opened.hierarchy, steps_for(preset, job), job.calibration)
        seconds = time.process_time() - start
        base = base or seconds
        with torch.inference_mode():
            change = paired_mean(reference, losses(job, opened.model), over="positions")
        print(f"{name} {preset}: {change.value:+.4f} in {seconds:.1f} s", flush=True)
        yield {
            "model": name,
            "preset": preset,
            "loss_16_bit": float(reference.mean()),
            "loss_change": change.model_dump(),
            "weight_bytes": packed_bytes(opened, done),
            "dense_bytes": account(opened, {}).weight_bytes,
            "cpu_seconds": seconds,
            "time_ratio": seconds / base,
            "calibration": job.parts.counts["calibrate"],
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| model | preset | bytes | Δ loss, nats [95 %] | time by GPTQ's |", "|---|---|---|---|---|"]
    for row in rows:
        change = row["loss_change"]
        lines.append(
            f"| {row['model']} | {row['preset']} | {row['weight_bytes']:,} | "
            f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}] | {row['time_ratio']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the contest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny-lm", "tiny-vlm"])
    parser.add_argument("--only", nargs="+", default=PRESETS, metavar="PRESET")
    options = parser.parse_args()
    known = {model: {"model": model} for model in ("tiny-lm", "tiny-vlm")} | contestants()
    file = RESULTS / "methods.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    for model in options.models:
        for row in rows_of(model, known[model], tuple(options.only)):
            rows = [other for other in rows if (other["model"], other["preset"]) != (model, row["preset"])] + [row]
            rows.sort(key=place_of)
            report = {"command": "python benchmarks/methods.py", "environment": environment(), "rows": rows}
            write_json(file, report)
            write_text(RESULTS / "methods.md", f"`{report['command']}`\n\n{table(rows)}\n")


def place_of(row: dict[str, Any]) -> tuple[str, int]:
    """Where a row stands in the table; rows do not depend on each other, so they may come from several runs."""
    return row["model"], PRESETS.index(row["preset"]) if row["preset"] in PRESETS else len(PRESETS)


if __name__ == "__main__":
    main()
