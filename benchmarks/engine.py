"""How fast models write on a CPU: the native engine beside transformers, torchao, OpenVINO and llama.cpp.

Run: python benchmarks/engine.py [MODEL ...] [--bits 16 8 4] [--threads N] [--prompt 128 ...] [--new 48] [--rounds 3]
MODEL: smollm2-135m, llama-0.5b-shape, llama-7b-shape (two blocks of that width). Default: all, the shapes at 4 bits.
Writes benchmarks/results/engine.json and engine.md, in which rows of other models stay.

Every side is a process of its own, one after the other, and they take turns over the rounds; a figure is the median of
a side's rounds, a ratio the median of the ratios within each round. The codes are the same for Gossamer, llama.cpp and
OpenVINO: round-to-nearest in groups of 32, exported by `gossamer export`; torchao rounds anew at the same bits. The
roofline is what a plain sweep over as many bytes as a token's weights takes, in the same process. Random weights (the
shapes) say nothing of quality: none is reported.
"""

import argparse
import itertools
import json
import operator
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from environments import Json, in_process, python_of, unavailable
from gossamer.core.files import write_json, write_text, writing_directory

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks" / "engines"
CACHE = ROOT / ".cache" / "models"
RESULTS = ROOT / "benchmarks" / "results"
OURS = "gossamer"
SIDES: dict[str, tuple[str, str | None, tuple[int, ...]]] = {
    OURS: ("with_gossamer", None, (16, 8, 4)),
    "gossamer, 8-bit inputs": ("with_gossamer", None, (8, 4)),
    "transformers": ("with_transformers", None, (16,)),
    "transformers, compiled": ("with_transformers", None, (16,)),
    "torchao": ("with_transformers", "torchao", (8, 4)),
    "OpenVINO": ("with_openvino", None, (16, 8, 4)),
    "llama.cpp": ("with_llama_cpp", None, (16, 8, 4)),
}
"""Side → its script, the environment it needs (None: ours), the bits it runs at."""


def smollm2() -> Path:
    """A whole small model with true weights, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import models

    target, source = CACHE / "smollm2-135m-bf16", models.smollm2()
    if not target.exists():
        with writing_directory(target) as folder:
            AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(folder)
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return target


def shaped(name: str, **settings: Any) -> Path:
    """A random Llama in bfloat16 with tiny-lm's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from gossamer.models.embedded import embedded_model

    target = CACHE / name
    if not target.exists():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **settings))
        finally:
            torch.set_default_dtype(torch.float32)
        with writing_directory(target) as folder:
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(embedded_model("tiny-lm")).save_pretrained(folder)
    return target


MODELS = {
    "smollm2-135m": (smollm2, (16, 8, 4)),
    "llama-0.5b-shape": (
        lambda: shaped(
            "llama-0.5b-shape", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, num_key_value_heads=4, vocab_size=65536,
        ),
        (4,),
    ),
    "llama-7b-shape": (lambda: shaped("llama-7b-shape", num_hidden_layers=2, vocab_size=8192), (4,)),
}  # fmt: skip
"""Model → how it is made, the bits it is run at by default."""


def exports(dense: Path, bits: int) -> Json:
    """The same weights in every form: on a grid of `bits`, and as the files of other engines. Reasons for missing ones
    stand in their place, after an exclamation mark."""
    from gossamer.core.errors import GossamerError
    from gossamer.search.export import export_gguf_job
    from gossamer.search.export_openvino import export_openvino_job
    from gossamer.search.jobs import apply_job

    base = CACHE / "engine"
    packed = dense if bits == 16 else base / f"{dense.name}-w{bits}g32"
    if not packed.exists():
        apply_job(f"rtn-w{bits}g32", str(dense), packed)
    files: Json = {"dense": str(dense), "packed": str(packed)}
    for name, write, suffix in (("gguf", export_gguf_job, ".gguf"), ("openvino", export_openvino_job, "-openvino")):
        target = base / f"{dense.name}-w{bits}g32{suffix}"
        try:
            if not target.exists():
                write(str(packed), target)
            files[name] = str(target)
        except GossamerError as error:
            files[name] = f"!{error}"
    return files


def run(side: str, task: Json) -> Json:
    """What a side measured, or why it did not."""
    script, environment, _ = SIDES[side]
    problem = unavailable(environment)
    needs = {"llama.cpp": "gguf", "OpenVINO": "openvino"}.get(side)
    if needs and task[needs].startswith("!"):
        problem = task[needs][1:]
    if problem:
        return {"failed": problem}
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "task.json", {**task, "side": side})
        return in_process(python_of(environment), SCRIPTS / f"{script}.py", Path(folder), task["threads"])


def contest(name: str, dense: Path, bits: int, tokens: int, options: argparse.Namespace) -> list[Json]:
    """The rows of a model at one width, with prompts of so many tokens."""
    from transformers import AutoTokenizer

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(dense)(text).input_ids[:tokens]
    task = {
        "bits": bits, "threads": options.threads, "prompt": ids, "new": options.new, "repetitions": 5,
        **exports(dense, bits),
    }  # fmt: skip
    sides = [side for side, (_, _, served) in SIDES.items() if bits in served and side not in options.without]
    found: dict[str, list[Json]] = {side: [] for side in sides}
    for turn in range(options.rounds):
        for side in sides:
            if not (found[side] and "failed" in found[side][0]):
                found[side].append(run(side, task))
                print(name, bits, turn, side, {k: v for k, v in found[side][-1].items() if k != "tokens"}, flush=True)
    return [{"prompt": tokens, **row(name, bits, side, found[side], found[OURS])} for side in sides]


def row(name: str, bits: int, side: str, runs: list[Json], ours: list[Json]) -> Json:
    """A side's medians, and ours divided by them."""
    line: Json = {"model": name, "bits": bits, "side": side}
    if "failed" in runs[0]:
        return {**line, "failed": runs[0]["failed"]}
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes"):
        line[key] = statistics.median(run[key] for run in runs)
        line[f"ratio_{key}"] = statistics.median(mine[key] / other[key] for mine, other in zip(ours, runs, strict=True))
    pairs = [(mine["tokens"], other["tokens"]) for mine, other in zip(ours, runs, strict=True) if "tokens" in other]
    line["same_tokens_of_16"] = min((sum(map(operator.eq, *pair)) for pair in pairs), default="")
    if "bandwidth_bytes_per_s" in runs[0]:
        line |= {key: runs[0][key] for key in ("weight_bytes", "bytes_per_token", "isa")}
        roofs = [each["bandwidth_bytes_per_s"] / each["bytes_per_token"] for each in runs]
        line["roofline_tokens_per_s"] = statistics.median(roofs)
        reached = [each["decode_tokens_per_s"] / roof for each, roof in zip(runs, roofs, strict=True)]
        line["of_roofline"] = statistics.median(reached)
    line["note"] = runs[0].get("note", "")
    return line


def table(rows: list[Json], command: str) -> str:
    """The Markdown page."""
    lines = [
        f"`{command}`, rows of other prompts than 128 with `--prompt`. Tokens per second; in brackets how many times "
        "as fast ours (wide inputs) is in the same round.",
        "",
        "| model | bits | prompt | side | prefill | decode | peak memory | of the roofline | same of 16 tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in rows:
        start = f"| {line['model']} | {line['bits']} | {line['prompt']} | {line['side']} |"
        if "failed" in line:
            lines.append(f"{start} not measured: {line['failed']} | | | | |")
            continue
        cells = [
            f"{line[f'{key}_tokens_per_s']:.0f} ({line[f'ratio_{key}_tokens_per_s']:.2f})"
            for key in ("prefill", "decode")
        ]
        roof = f"{line['of_roofline']:.0%}" if "of_roofline" in line else ""
        memory = f"{line['peak_memory_bytes'] / 1e6:.0f} MB"
        lines.append(f"{start} {' | '.join(cells)} | {memory} | {roof} | {line['same_tokens_of_16']} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Runs the contest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(MODELS)}; default: all")
    parser.add_argument("--bits", type=int, nargs="+", choices=(16, 8, 4))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompt", type=int, nargs="+", default=[128], help="its tokens")
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="+", default=[], choices=[*SIDES], metavar="SIDE")
    options = parser.parse_args()
    if unknown := [name for name in options.models if name not in MODELS]:
        parser.error(f"{unknown[0]} is not known: give {', '.join(MODELS)}")
    for name in options.models or MODELS:
        make, widths = MODELS[name]
        dense = make()
        for bits, tokens in itertools.product(options.bits or widths, options.prompt):
            rows = contest(name, dense, bits, tokens, options)
            file = RESULTS / "engine.json"
            kept = json.loads(file.read_text())["rows"] if file.exists() else []
            kept = [each for each in kept if place_of(each) != place_of(rows[0])] + rows
            kept.sort(key=place_of)
            command = f"python benchmarks/engine.py --threads {options.threads} --new {options.new}"
            write_json(file, {"command": command, "rows": kept})
            write_text(RESULTS / "engine.md", table(kept, command))


def place_of(line: Json) -> tuple[int, int, int]:
    """Where a contest's rows stand."""
    return list(MODELS).index(line["model"]), -line["bits"], line["prompt"]


if __name__ == "__main__":
    main()
