"""What memory `gossamer apply` takes at true widths: Llama-7B's and LLaVA-1.5's, two blocks a tower, random weights.

Run: python benchmarks/memory.py [MODEL ...] [--preset gptq-w4g64] [--samples 8] [--context 256]
MODEL: llama-7b-width, llava-1.5-width, smollm2-135m (the default: all three), or the directory of a model.
Writes benchmarks/results/memory.json and memory.md, in which rows of other models and presets stay.

Each run is a process of its own. Its peak is the kernel's (VmHWM), less that of a process that only imports the
libraries. Random weights say nothing of quality: none is reported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossamer.core.files import write_json, write_text, writing_directory

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "models"
RESULTS = ROOT / "benchmarks" / "results"
TOWER = "compress block by block"
BLOCKS = 32
"""Blocks of the real language model, to which times are extrapolated."""


def llama() -> Path:
    """A Llama of 7B's width with two blocks: random weights in bfloat16, tiny-lm's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from gossamer.models.embedded import embedded_model

    config = LlamaConfig(num_hidden_layers=2, max_position_embeddings=4096)  # all else is 7B's by default
    return _made("llama-7b-width", LlamaForCausalLM, config, AutoTokenizer, embedded_model("tiny-lm"))


def llava() -> Path:
    """A LLaVA-1.5 of true width with two blocks in each tower, and tiny-vlm's tokenizer."""
    from transformers import AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from gossamer.models.embedded import embedded_model

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(num_hidden_layers=2, max_position_embeddings=4096, vocab_size=32064)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, image_seq_length=576, vision_feature_layer=-1
    )
    return _made("llava-1.5-width", LlavaForConditionalGeneration, config, AutoProcessor, embedded_model("tiny-vlm"))


def smollm2() -> Path:
    """A whole small model with true weights."""
    import models

    return models.smollm2()


MODELS = {"llama-7b-width": llama, "llava-1.5-width": llava, "smollm2-135m": smollm2}


def _made(name: str, kind: Any, config: Any, reader: Any, words: Path) -> Path:
    """The directory of a random model with the words and the defaults of an embedded one."""
    import torch

    target = CACHE / name
    if target.exists():
        return target
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = kind(config)
    finally:
        torch.set_default_dtype(torch.float32)
    reading = reader.from_pretrained(words, **({"backend": "pil"} if "vision_config" in config.to_dict() else {}))
    if hasattr(reading, "image_processor"):
        side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
        reading.image_processor.size, reading.image_processor.crop_size = side, side
        reading.patch_size = config.vision_config.patch_size
    with writing_directory(target) as folder:
        model.save_pretrained(folder)
        reading.save_pretrained(folder)
        (folder / "gossamer.json").write_text((words / "gossamer.json").read_text(encoding="utf-8"), encoding="utf-8")
    return target


def plan_for(model: Path, preset: str, samples: int, context: int, file: Path) -> dict[str, Any]:
    """Writes the plan of a preset with little calibration data; returns the model's bytes and those of its blocks."""
    from gossamer.compress.presets import preset_steps
    from gossamer.core.plan import Calibration, ModelBinding, Plan
    from gossamer.evaluate.splits import sources
    from gossamer.evaluate.tasks import open_task
    from gossamer.models.open import open_model
    from gossamer.models.processors import load_processor, load_tokenizer
    from gossamer.models.stored import fingerprint_of, stored_tensors

    opened = open_model(str(model), weights=False)
    tensors = stored_tensors(model)
    processor = load_processor(model)
    tokenizer = getattr(processor, "tokenizer", None) or load_tokenizer(model)
    opened = replace(opened, processor=processor, tokenizer=tokenizer)
    config = type(opened.config).from_pretrained(model)
    task, data = opened.defaults.get("task", "text"), opened.defaults.get("data", "heldout")
    settings = {"context": context} if task == "text" else {"split": "val", "limit": samples * 20}
    pool = open_task(task, data, opened, **settings)
    Plan(
        model=ModelBinding(
            family=opened.hierarchy.family, fingerprint=fingerprint_of(config.to_dict(), tensors)
        ),
        calibration=Calibration(
            task=task, data=data, sha256=str(pool.protocol["sha256"]), pool=len(set(sources(pool))), samples=samples,
            settings=settings,
        ),
        compression=preset_steps(preset, opened.hierarchy),
    ).save(file)  # fmt: skip
    tower = max(opened.hierarchy.modalities, key=lambda part: max((b.parameters for b in part.blocks), default=0))
    return {
        "stored_bytes": sum(tensor.bytes for tensor in tensors),
        "parameters": sum(p.numel() for p in opened.model.parameters()),
        "blocks": len(tower.blocks),
        "block_parameters": tower.blocks[0].parameters,
        "calibration": f"{samples} × {context} tokens" if task == "text" else f"{samples} questions about pictures",
    }


def child(model: str, plan: str, out: str, threads: int) -> None:
    """Carries the plan out as `gossamer apply` does, and prints the CPU seconds of each step."""
    import torch

    from gossamer.core.progress import Progress
    from gossamer.search.jobs import apply_job

    torch.set_num_threads(threads)

    class Watching(Progress):
        """Notes the process's CPU time whenever a step of the walk begins or ends."""

        def __init__(self) -> None:
            super().__init__(enabled=False)
            self.marks: list[float] = []

        def track(self, items: Any, stage: str, total: int | None = None) -> Any:
            """As the parent's."""
            for item in items:
                self.marks.append(time.process_time())
                yield item
            self.marks.append(time.process_time())

    watching = Watching()
    result = apply_job(plan, model, Path(out), watching)
    steps = [after - before for before, after in zip(watching.marks, watching.marks[1:], strict=False)]
    peak = _status(os.getpid())["VmHWM"]
    figures = {"steps": steps, "cpu_seconds": time.process_time(), "peak_bytes": peak, "parity": result["parity"]}
    print(json.dumps(figures))


def imports() -> None:
    """What every run loads besides the model."""
    import torch

    import gossamer.search.jobs
    from gossamer.models.open import open_model

    opened = open_model("tiny-vlm")
    with torch.no_grad():
        opened.model.get_input_embeddings()(torch.zeros(1, 1, dtype=torch.int64))
    assert gossamer.search.jobs.apply_job
    print(json.dumps({"peak_bytes": _status(os.getpid())["VmHWM"]}))


def watched(arguments: list[str], trace: Path | None = None) -> dict[str, Any]:
    """What this script prints when run with `arguments`, and its `wall_seconds`. `trace` gets its memory over time."""
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    rows = []
    while process.poll() is None:
        found = _status(process.pid)
        rows.append((time.monotonic() - begin, found.get("VmRSS", 0), found.get("RssAnon", 0)))
        time.sleep(0.05)
    printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed")
    if trace is not None:
        lines = [f"{seconds:.2f} {resident / 1e9:.3f} {anonymous / 1e9:.3f}" for seconds, resident, anonymous in rows]
        write_text(trace, "seconds resident anonymous (GB)\n" + "\n".join(lines) + "\n")
    return {**json.loads(printed.strip().splitlines()[-1]), "wall_seconds": time.monotonic() - begin}


def _status(pid: int) -> dict[str, int]:
    """The kernel's figures of a process, in bytes; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.strip().endswith("kB")}


def measured(name: str, options: argparse.Namespace, libraries: int) -> dict[str, Any]:
    """One model's row."""
    model = MODELS[name]() if name in MODELS else Path(name)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        plan = Path(folder) / "plan.yaml"
        facts = plan_for(model, options.preset, options.samples, options.context, plan)
        run = watched(
            ["--child", str(model), str(plan), str(Path(folder) / "out"), "--threads", str(options.threads)],
            options.trace,
        )
    return {"model": model.name, "preset": options.preset, **facts, **run, "libraries_bytes": libraries}


def extrapolated(row: dict[str, Any]) -> float:
    """CPU seconds for `BLOCKS` blocks in the largest tower.

    The last block but one takes what each block would; opening, writing and proving grow with the parameters, at most.
    """
    more = max(0, BLOCKS - row["blocks"])
    rest = row["cpu_seconds"] - sum(row["steps"])
    grown = rest * (1 + more * row["block_parameters"] / row["parameters"])
    return sum(row["steps"]) + more * row["steps"][-2] + grown


def write(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Puts a row into the results."""
    from gossamer.search.outcome import environment

    file = RESULTS / "memory.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = [other for other in kept if (other["model"], other["preset"]) != (row["model"], row["preset"])]
    rows.append({**row, "extrapolated_cpu_seconds": extrapolated(row)})
    command = f"python benchmarks/memory.py {row['model']} --preset {options.preset} --samples {options.samples}"
    command += f" --context {options.context} --threads {options.threads}"
    rows[-1]["command"] = command
    write_json(file, {"environment": environment(), "rows": rows})
    write_text(RESULTS / "memory.md", table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        ", ".join(f"`{command}`" for command in dict.fromkeys(row["command"] for row in rows)),
        "",
        "| model | preset | calibration | float32 model | one block | peak above libraries | by model + block | "
        f"CPU s a block | CPU min for {BLOCKS} blocks, extrapolated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        whole, block = 4 * row["parameters"], 4 * row["block_parameters"]
        above = row["peak_bytes"] - row["libraries_bytes"]
        deep = f"{row['extrapolated_cpu_seconds'] / 60:.0f}" if row["blocks"] == 2 else "not cut short"
        lines.append(
            f"| {row['model']} | {row['preset']} | {row['calibration']} | {whole / 1e9:.2f} GB | "
            f"{block / 1e9:.2f} GB | {above / 1e9:.2f} GB | {above / (whole + block):.2f} | "
            f"{row['steps'][-2]:.1f} | {deep} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all models, or (as the script calls itself) one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--preset", default="gptq-w4g64")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trace", type=Path, help="a file for the resident set over time")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--imports", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.threads)
        return
    if options.imports:
        imports()
        return
    libraries = watched(["--imports"])["peak_bytes"]
    for name in options.models or MODELS:
        write(measured(name, options, libraries), options)


if __name__ == "__main__":
    main()
