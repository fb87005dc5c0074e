"""Every technique on the same model, calibration data and test data: rounding, pruning, factors, and chains of them.

Run: python benchmarks/methods.py [MODEL ...] [--only PRESET ...] [--effort quick] [--on cuda] [--jobs N]
(default: tiny-lm tiny-vlm; with GOSSAMER_DATA also SmolLM2-135M and stories260K). Writes methods.json and methods.md in
benchmarks/results; rows of other runs stay. `quick` reads fewer examples, in calibration and in the test: its rows
stand apart.

Each row is a preset, applied as `gossamer apply PRESET` does: on every plain linear layer of the blocks, the projector
and, where it is quantised, an untied head. `awq/gptq` scales as AWQ does and rounds as GPTQ does. Loss is in nats per
answer or token on the test part, which no technique saw; the change against the 16-bit model is paired over positions,
with a bootstrap interval. Bytes are packed ones: codes, scales, factors, and for pruned weights a bit mask and the
values that stay, though no public container of compressed-tensors leaves zeros out. Time is that of the compression
alone, CPU time, or wall time on a GPU; its ratio is to `gptq-w3g64` on the same model in the same run.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from allocation import contestants
from gossamer.compress.apply import Applied, apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.core.files import write_json, write_text
from gossamer.core.plan import Step
from gossamer.engine.forward import forward
from gossamer.evaluate.intervals import paired_mean
from gossamer.models.accounting import account
from gossamer.models.open import Opened, open_model
from gossamer.search.job import Job
from gossamer.search.opening import open_job
from gossamer.search.outcome import environment
from gossamer.search.request import Effort, OptimizeRequest

RESULTS = Path(__file__).parent / "results"
ROUNDING = ("rtn", "hqq", "awq", "awq/gptq", "gptq", "gptaq", "qronos")
BASE = "gptq-w3g64"
PRUNING = ("magnitude", "wanda", "ria", "sparsegpt", "obr")
PRESETS = (
    *(f"{technique}-w{bits}g64" for bits in (2, 3, 4) for technique in ROUNDING),
    "omniquant-w3g64",
    "signround-w2g64",
    "signround-w3g64",
    *(f"{transform}+gptq-w{bits}g64" for bits in (2, 3) for transform in ("rotate", "spinquant")),
    *(f"{transform}+rtn-w3g64" for transform in ("rotate", "spinquant", "learned_scales")),
    "learned_scales+omniquant-w3g64",
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
    *(f"prune_channels-{widths}{share}" for share in (75, 50) for widths in ("", "free-")),
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
        log_probs = job.parts.test.log_probs(forward(model, batch.inputs), batch)
        found.append(job.parts.test.losses(log_probs, batch).double().cpu().numpy())
    return np.concatenate(found)


@cache
def opened_job(name: str, effort: Effort, on: str, seed: int) -> tuple[Job, np.ndarray]:
    """The data of one model's contest and the losses of the unchanged model."""
    import torch

    out = Path(".cache/benchmarks/methods") / name
    job = open_job(OptimizeRequest(out=out, ratio=1.0, effort=effort, on=on, seed=seed, **known()[name]))
    with torch.inference_mode():
        return job, losses(job, job.opened.model)


def row_of(name: str, preset: str, effort: Effort, on: str, seed: int) -> dict[str, Any]:
    """One preset on one model."""
    import torch

    job, reference = opened_job(name, effort, on, seed)
    opened = open_model(job.request.model)
    opened.model.to(on)
    clock = time.process_time if on == "cpu" else time.perf_counter
    start = clock()
    done = apply_steps(opened.model, opened.hierarchy, steps_for(preset, job), job.calibration)
    seconds = clock() - start
    with torch.inference_mode():
        change = paired_mean(reference, losses(job, opened.model), over="positions")
    return {
        "model": name if effort == "standard" else f"{name}, {effort}",
        "preset": preset,
        "loss_16_bit": float(reference.mean()),
        "loss_change": change.model_dump(),
        "weight_bytes": packed_bytes(opened, done),
        "dense_bytes": account(opened, {}).weight_bytes,
        "seconds": seconds,
        "on": "cpu" if on == "cpu" else torch.cuda.get_device_name(on),
        "calibration": job.parts.counts["calibrate"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | preset | bytes | Δ loss, nats [95 %] | of tests | time by GPTQ's | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        change = row["loss_change"]
        ratio = f"{row['time_ratio']:.1f}" if "time_ratio" in row else "—"
        lines.append(
            f"| {row['model']} | {row['preset']} | {row['weight_bytes']:,} | "
            f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}] | {change['n']:,} | {ratio} | "
            f"{row['on']} |"
        )
    return "\n".join(lines)


def known() -> dict[str, dict[str, str | None]]:
    """Name → model, task, data."""
    return {model: {"model": model} for model in ("tiny-lm", "tiny-vlm")} | contestants()


def main() -> None:
    """Runs the contest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny-lm", "tiny-vlm"])
    parser.add_argument("--only", nargs="+", default=PRESETS, metavar="PRESET")
    parser.add_argument("--effort", default="standard", choices=["quick", "standard"])
    parser.add_argument("--on", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the windows drawn; rows of others than 0 are not kept")
    parser.add_argument("--jobs", type=int, default=1, help="presets at a time, each in a process")
    options = parser.parse_args()
    file = RESULTS / "methods.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for model in options.models:
            presets = (BASE, *(preset for preset in options.only if preset != BASE))
            futures = {
                pool.submit(row_of, model, preset, options.effort, options.on, options.seed): preset
                for preset in presets
            }
            fresh: dict[str, dict[str, Any]] = {}
            others = rows
            for future in as_completed(futures):
                if future.exception() is not None:
                    print(f"{model} {futures[future]}: {future.exception()}", flush=True)
                    continue
                row = fresh[futures[future]] = future.result()
                print(
                    f"{model} {row['preset']}: {row['loss_change']['value']:+.4f} in {row['seconds']:.1f} s", flush=True
                )
                if options.seed:
                    continue
                for one in fresh.values() if BASE in fresh else ():
                    one["time_ratio"] = one["seconds"] / fresh[BASE]["seconds"]
                others = [one for one in rows if one["model"] != row["model"] or one["preset"] not in fresh]
                write(sorted([*others, *fresh.values()], key=place_of))
            rows = [*others, *fresh.values()]


def write(rows: list[dict[str, Any]]) -> None:
    """The report, as JSON and as the table for the docs."""
    report = {"command": "python benchmarks/methods.py", "environment": environment(), "rows": rows}
    write_json(RESULTS / "methods.json", report)
    write_text(RESULTS / "methods.md", f"`{report['command']}`\n\n{table(rows)}\n")


def place_of(row: dict[str, Any]) -> tuple[str, int]:
    """Where a row stands in the table; rows do not depend on each other, so they may come from several runs."""
    return row["model"], PRESETS.index(row["preset"]) if row["preset"] in PRESETS else len(PRESETS)


if __name__ == "__main__":
    main()
