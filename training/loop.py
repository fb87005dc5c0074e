"""One training loop for every embedded model: resumable, deterministic, quiet.

A *job* (see `Job`) knows its model, its data and its loss; the loop knows the optimiser, the schedule, the checkpoint
and the clock. Because a job's data is a pure function of (seed, step) and the checkpoint holds everything else, a run
that is interrupted and resumed ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

CHECKPOINT_EVERY_S = 120.0
VALIDATE_EVERY_S = 300.0
PROGRESS_EVERY_S = 15.0


class Job(Protocol):
    """What a kind module's `build(config)` returns."""

    model: nn.Module
    """Every trained parameter, auxiliary heads included, in fp32."""

    def loss(self, step: int, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step and what to log; its data depends on nothing but the seed and `step`."""

    def evaluate(self, limit: int) -> dict[str, float]:
        """Metrics on at most `limit` validation items."""

    def export(self, directory: Path) -> None:
        """Write the finished model into an existing empty directory."""


@dataclass(frozen=True)
class Recipe:
    """The optimiser's part of a config."""

    seed: int
    steps: int
    batch: int
    lr: float
    warmup: int = 150
    weight_decay: float = 0.05
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    final_lr: float = 0.05
    validate: int = 256

    @classmethod
    def of(cls, config: dict[str, Any]) -> Recipe:
        chosen = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        if "betas" in chosen:
            chosen["betas"] = tuple(chosen["betas"])
        return cls(**chosen)

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `final_lr` of the peak."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms, biases and scalars are left alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    elapsed_s: float = 0.0


def save(path: Path, job: Job, adam: torch.optim.AdamW, progress: Progress) -> None:
    """Write the checkpoint beside and rename it, so that a kill leaves the old one or the new one."""
    state = {
        "model": job.model.state_dict(),
        "optimiser": adam.state_dict(),
        "step": progress.step,
        "elapsed_s": progress.elapsed_s,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    os.replace(beside, path)


def load(path: Path, job: Job, adam: torch.optim.AdamW | None = None) -> Progress:
    """Put a checkpoint back (the optimiser and the random state only where `adam` is given)."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    job.model.load_state_dict(state["model"])
    if adam is not None:
        adam.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(state["step"], state["elapsed_s"])


class Stop:
    """Turns SIGTERM and SIGINT into a flag that the loop reads between two steps."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(job: Job, recipe: Recipe, work: Path) -> bool:
    """Train from the checkpoint in `work`, or from the start, to `recipe.steps`. False if a signal stopped it."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    job.model.to(device())
    adam = optimiser(job.model, recipe)
    torch.manual_seed(recipe.seed)
    progress = load(checkpoint, job, adam) if checkpoint.exists() else Progress()

    def log(kind: str, values: dict[str, float]) -> None:
        line = {"kind": kind, "step": progress.step, "elapsed_s": round(progress.elapsed_s, 1), **values}
        with (work / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def validate() -> None:
        rng = torch.get_rng_state()
        job.model.eval()
        metrics = job.evaluate(recipe.validate)
        job.model.train()
        torch.set_rng_state(rng)
        log("validation", metrics)
        print(f"\nvalidation at {progress.step}: {_words(metrics)}", file=sys.stderr, flush=True)

    first_step, began, already = progress.step, time.monotonic(), progress.elapsed_s
    saved = validated = time.monotonic()
    shown = 0.0
    job.model.train()
    with Stop() as stop:
        while progress.step < recipe.steps and not stop.asked:
            for group in adam.param_groups:
                group["lr"] = recipe.lr_at(progress.step)
            loss, metrics = job.loss(progress.step, recipe.batch)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"step {progress.step}: the loss is {loss.item()}; lower lr or clip")
            adam.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(job.model.parameters(), recipe.clip)
            adam.step()

            progress.step += 1
            now = time.monotonic()
            progress.elapsed_s = already + now - began
            if now - shown > PROGRESS_EVERY_S:
                shown = now
                rate = (progress.step - first_step) / (now - began)
                metrics = {"loss": loss.item(), **metrics}
                log("train", {**metrics, "norm": norm.item(), "lr": adam.param_groups[0]["lr"]})
                left = (recipe.steps - progress.step) / rate
                line = (
                    f"{progress.step}/{recipe.steps}  {_words(metrics)}  {rate:.2f} steps/s  {left / 60:.1f} min left"
                )
                print(f"\r{line}  ", end="", file=sys.stderr, flush=True)
            if now - saved > CHECKPOINT_EVERY_S:
                save(checkpoint, job, adam, progress)
                saved = time.monotonic()
            if now - validated > VALIDATE_EVERY_S:
                validate()
                validated = time.monotonic()
    save(checkpoint, job, adam, progress)
    if progress.step < recipe.steps:
        print(f"\nstopped at step {progress.step}; run again to go on", file=sys.stderr)
        return False
    validate()
    return True


def _words(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
