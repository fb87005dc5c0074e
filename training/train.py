"""Train an embedded model: `python training/train.py training/configs/tiny-lm.yaml`.

Run it again after any interruption and it goes on where it was. When the last step is done it exports the model into
the directory the config names and writes its card. `--export-only` exports the newest checkpoint of a run still going.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))

import loop  # noqa: E402  (a script's own folder)


def processor() -> str:
    """The device in words, for the model card."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        rows = []
    names = [row.split(":")[1].strip() for row in rows if "model name" in row]
    return names[0] if names else platform.processor() or platform.machine()


def export(job: Any, config: dict[str, Any], progress: loop.Progress, name: str, card: bool) -> Path:
    """Write the model beside its place, then swap it in; without `card` the former README.md stays."""
    target = ROOT / config["export"]
    beside, former = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (beside, former):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    job.model.eval()
    job.export(beside)
    record = {
        "steps": progress.step,
        "steps_planned": config["steps"],
        "batch": config["batch"],
        "seed": config["seed"],
        "elapsed_s": round(progress.elapsed_s, 1),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": f"python training/train.py training/configs/{name}.yaml",
    }
    (beside / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    if card and hasattr(job, "card"):
        (beside / "README.md").write_text(job.card(beside))
    elif (target / "README.md").exists():
        shutil.copy(target / "README.md", beside / "README.md")
    if target.exists():
        os.replace(target, former)
    os.replace(beside, target)
    shutil.rmtree(former, ignore_errors=True)
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, help="checkpoint and log (default ~/.cache/gossamer/training/NAME)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--export-only", action="store_true", help="export the newest checkpoint, train nothing")
    parser.add_argument("--card", action="store_true", help="with --export-only: evaluate and write README.md too")
    chosen = parser.parse_args(arguments)

    try:
        config: dict[str, Any] = yaml.safe_load(chosen.config.read_text())
    except OSError as error:
        print(f"{chosen.config}: {error.strerror}; expected one like training/configs/tiny-lm.yaml", file=sys.stderr)
        return 2
    if chosen.steps:
        config["steps"] = chosen.steps
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    name = chosen.config.stem
    work = chosen.work or Path.home() / ".cache/gossamer/training" / name
    torch.manual_seed(config["seed"])
    job = importlib.import_module(config["kind"]).build(config)
    recipe = loop.Recipe.of(config)

    if chosen.export_only:
        progress = loop.load(work / "checkpoint.pt", job)
        print(export(job, config, progress, name, chosen.card))
        return 0
    parameters = sum(p.numel() for p in job.model.parameters())
    print(f"{name}: {parameters:,} trained parameters, {recipe.steps} steps, in {work}", file=sys.stderr)
    if not loop.train(job, recipe, work):
        return 130
    progress = loop.load(work / "checkpoint.pt", job)
    print(export(job, config, progress, name, card=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
