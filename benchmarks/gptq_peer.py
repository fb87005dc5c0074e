"""GPTQ here against llm-compressor's GPTQ: the same model, samples and settings, one run, a process for each side.

    GOSSAMER_DATA=… python benchmarks/gptq_peer.py

SmolLM2-135M-Instruct; calibration on WikiText-2 validation, perplexity on WikiText-2 test, every linear layer of the
blocks in groups of 64 (128 does not divide its width of 576), symmetric, static activation order, damping 0.01,
block by block on already quantised inputs. Clipping is each side's default and, for ours, also the peer's (the full
range). The weights of this model lie on a 4-bit asymmetric grid in groups of 32; neither side's grid is that one.
The peer lives in an environment of its own, `.cache/peers/llmcompressor`, which is created on the first run.
Time is that of the quantisation call alone (CPU time tells more where other work shares the machine); peak memory is
the process's, model and libraries included.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".cache" / "peers" / "llmcompressor"
RESULTS = ROOT / "benchmarks" / "results" / "gptq_peer"
GROUP = 64
SIDES = ("gossamer", "gossamer-full-range", "llm-compressor")


def main() -> None:
    """Runs the contest, or (with --side, as the contest calls itself) one side of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eval-windows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", choices=(*SIDES, "evaluate"), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is None:
        contest(options)
        return
    import torch

    torch.set_num_threads(options.threads)
    settings = json.loads((options.scratch / "settings.json").read_text())
    run = evaluate if options.side == "evaluate" else one_side
    print(json.dumps(run(options, settings)))


def contest(options: argparse.Namespace) -> None:
    """All sides in turn, `rounds` times over; writes the JSON and the table."""
    data = os.environ.get("GOSSAMER_DATA")
    if not data:
        print("skipped: set GOSSAMER_DATA to the folder that holds wikitext-2/valid.txt and test.txt")
        sys.exit()
    from models import smollm2

    prepare_peer()
    model = smollm2()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name, text, windows in (("calibration", "valid", options.samples), ("test", "test", options.eval_windows)):
            source = (Path(data) / "wikitext-2" / f"{text}.txt").read_text(encoding="utf-8")
            (scratch / f"{name}.json").write_text(json.dumps(windows_of(model, source, windows, options.context)))
        for number in range(options.rounds):
            for bits in options.bits:
                for side in SIDES:
                    settings = {"model": str(model), "bits": bits, "keep": number == 0}
                    (scratch / "settings.json").write_text(json.dumps(settings))
                    result = in_process(side, options, scratch)
                    if number == 0:
                        settings = {"model": str(model), "weights": str(scratch / "weights.safetensors")}
                        (scratch / "settings.json").write_text(json.dumps(settings))
                        result |= in_process("evaluate", options, scratch)
                    runs.append({"side": side, "bits": bits, "round": number, **result})
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        (scratch / "settings.json").write_text(json.dumps({"model": str(model), "weights": None}))
        baseline = in_process("evaluate", options, scratch)
    write(options, runs, baseline)


def prepare_peer() -> None:
    """The peer's environment, with the same torch as ours."""
    if (PEER / "bin" / "llmcompressor.trace").exists():
        return
    if not (PEER / "lib").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    for requirement in ("torch==2.13.0", "llmcompressor==0.14.0.1"):
        subprocess.run([str(PEER / "bin" / "pip"), "install", "--quiet", requirement], check=True)


def windows_of(model: Path, text: str, count: int, context: int) -> list[list[int]]:
    """The first `count` non-overlapping windows of `context` tokens."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text[: count * context * 12]).input_ids
    return [ids[start : start + context] for start in range(0, count * context, context)]


def in_process(side: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One side's result, from a process of its own."""
    python = str(PEER / "bin" / "python") if side == "llm-compressor" else sys.executable
    command = [python, __file__, "--side", side, "--scratch", str(scratch)]
    command += ["--batch", str(options.batch), "--threads", str(options.threads)]
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "load_before": round(load, 2)}


def one_side(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Quantises; measures time and peak memory; keeps the weights for the evaluation if asked."""
    ids = json.loads((options.scratch / "calibration.json").read_text())
    quantise = peer if options.side == "llm-compressor" else ours
    seconds, weights, versions = quantise(options, settings, ids)
    peak = peak_bytes()
    if settings["keep"]:
        from safetensors.torch import save_file

        save_file(weights, options.scratch / "weights.safetensors")
    return {**seconds, "peak_bytes": peak, "versions": versions}


def peak_bytes() -> int:
    """The highest resident memory of this process; `getrusage` would also count what ran before `exec`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


def ours(options: argparse.Namespace, settings: dict[str, Any], ids: list[list[int]]) -> tuple[Any, Any, Any]:
    """Gossamer's side: the preset's steps through `apply_steps`."""
    import torch

    from gossamer.compress.apply import apply_steps
    from gossamer.compress.presets import preset_steps
    from gossamer.core.plan import Step
    from gossamer.data.batch import Batch
    from gossamer.models.memory import Scratch
    from gossamer.models.open import open_model

    opened = open_model(settings["model"], memory=Scratch(options.scratch / "model"))  # as `gossamer apply` opens it
    steps = preset_steps(f"gptq-w{settings['bits']}g{GROUP}", opened.hierarchy)
    if options.side == "gossamer-full-range":
        steps = tuple(Step.model_validate({**step.model_dump(), "clip": "none"}) for step in steps)
    batches = []
    for start in range(0, len(ids), options.batch):
        rows = torch.tensor(ids[start : start + options.batch])
        inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        batches.append(Batch(inputs, rows, tuple(range(start, start + len(rows)))))
    begin, begin_cpu = time.perf_counter(), time.process_time()
    apply_steps(opened.model, opened.hierarchy, steps, batches, memory=opened.memory)
    seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
    return seconds, linear_weights(opened.model), {"torch": torch.__version__}


def peer(options: argparse.Namespace, settings: dict[str, Any], ids: list[list[int]]) -> tuple[Any, Any, Any]:
    """llm-compressor's side: its sequential pipeline with `GPTQModifier`."""
    import llmcompressor
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    grid = {"num_bits": settings["bits"], "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    recipe = GPTQModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": grid}},
        ignore=["lm_head"],
        dampening_frac=0.01,
        block_size=128,
        actorder="static",
    )
    begin, begin_cpu = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=data,
        recipe=recipe,
        batch_size=options.batch,
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
    return seconds, linear_weights(model), {"torch": torch.__version__, "llmcompressor": llmcompressor.__version__}


def linear_weights(model: Any) -> dict[str, Any]:
    """The dense values of all block weights, for the common evaluation."""
    parameters = dict(model.named_parameters())
    return {name: value.detach().contiguous() for name, value in parameters.items() if name.endswith("_proj.weight")}


def evaluate(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Perplexity of the plain model with a side's weights put in, and a 95 % interval by bootstrap over windows."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    if settings["weights"]:
        missing = model.load_state_dict(load_file(settings["weights"]), strict=False)
        assert not missing.unexpected_keys
    ids = torch.tensor(json.loads((options.scratch / "test.json").read_text()))
    losses = []
    with torch.no_grad():
        for row in ids:
            logits = model(row[None]).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, row[1:]))
    loss = torch.stack(losses)
    draws = torch.randint(len(loss), (2000, len(loss)), generator=torch.Generator().manual_seed(0))
    low, high = loss[draws].mean(1).quantile(torch.tensor([0.025, 0.975])).exp().tolist()
    return {"perplexity": float(loss.mean().exp()), "low": low, "high": high, "window_losses": loss.tolist()}


def write(options: argparse.Namespace, runs: list[dict[str, Any]], baseline: dict[str, Any]) -> None:
    """Medians and ratios (ours over the peer's), as JSON and as the table for the docs."""
    rows = []
    for bits in options.bits:
        medians = {side: median_of(runs, side, bits) for side in SIDES}
        theirs = medians["llm-compressor"]
        for side, found in medians.items():
            rows.append(
                {
                    "bits": bits,
                    "side": side,
                    **found,
                    "time_ratio": found["seconds"] / theirs["seconds"],
                    "cpu_time_ratio": found["cpu_seconds"] / theirs["cpu_seconds"],
                    "memory_ratio": found["peak_bytes"] / theirs["peak_bytes"],
                    "loss_difference": paired(found["window_losses"], theirs["window_losses"]),
                }
            )
    command = (
        f"python benchmarks/gptq_peer.py --samples {options.samples} --context {options.context} "
        f"--batch {options.batch} --rounds {options.rounds} --eval-windows {options.eval_windows} "
        f"--threads {options.threads} --bits {' '.join(map(str, options.bits))}"
    )
    loads = [run["load_before"] for run in runs]
    disturbed = max(loads) > options.threads
    report = {
        "command": command,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": options.threads},
        "load_average": {"least": min(loads), "most": max(loads), "disturbed": disturbed},
        "data": "WikiText-2 valid (calibration) and test (perplexity), non-overlapping windows from the start",
        "settings": {"group": GROUP, "symmetric": True, "act_order": "static", "damping": 0.01},
        "baseline_perplexity": baseline["perplexity"],
        "rows": rows,
        "runs": [{key: value for key, value in run.items() if key != "window_losses"} for run in runs],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(options, report), encoding="utf-8")


def median_of(runs: list[dict[str, Any]], side: str, bits: int) -> dict[str, Any]:
    """The median time and memory of a side, and the quality of its first round."""
    mine = [run for run in runs if run["side"] == side and run["bits"] == bits]
    first = mine[0]
    return {
        **{key: statistics.median(run[key] for run in mine) for key in ("seconds", "cpu_seconds", "peak_bytes")},
        **{key: first[key] for key in ("perplexity", "low", "high", "window_losses", "versions")},
    }


def paired(mine: list[float], theirs: list[float]) -> dict[str, float]:
    """The mean difference in nats per token with a 95 % interval by paired bootstrap over windows."""
    import numpy as np

    differences = np.array(mine) - np.array(theirs)
    draws = np.random.default_rng(0).integers(len(differences), size=(5000, len(differences)))
    low, high = np.quantile(differences[draws].mean(1), [0.025, 0.975])
    return {"value": float(differences.mean()), "low": float(low), "high": float(high), "n": len(differences)}


def table(options: argparse.Namespace, report: dict[str, Any]) -> str:
    """The Markdown table."""
    size = f"{options.samples} × {options.context}"
    lines = [
        f"GPTQ on SmolLM2-135M-Instruct, symmetric, groups of {GROUP}, {size} calibration tokens (WikiText-2 valid);",
        f"perplexity on {options.eval_windows} × {options.context} tokens of WikiText-2 test (unquantised",
        f"{report['baseline_perplexity']:.2f}), differences paired over windows;",
        f"medians over rounds: {options.rounds}; threads: {options.threads}.",
        "",
        "| bits | side | perplexity (95 %) | nats/token | time | ratio | CPU time | ratio | peak memory | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        gap, is_peer = row["loss_difference"], row["side"] == "llm-compressor"
        cells = (
            row["bits"],
            row["side"],
            f"{row['perplexity']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            "—" if is_peer else f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]",
            f"{row['seconds']:.1f} s",
            f"{row['time_ratio']:.2f}",
            f"{row['cpu_seconds']:.1f} s",
            f"{row['cpu_time_ratio']:.2f}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['memory_ratio']:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", f"`GOSSAMER_DATA=… {report['command']}`"]
    if report["load_average"]["disturbed"]:
        lines.append("")
        lines.append(
            f"Other work shared the machine during this run (load average up to {report['load_average']['most']:.1f}): "
            "read the ratios, not the seconds, and of those the ratio of CPU time."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
