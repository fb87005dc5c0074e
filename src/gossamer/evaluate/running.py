"""What it takes to run models side by side: the time of their stages and the memory of their weights.

Stages, in milliseconds: `prefill_ms` (a prompt of text) and `decode_ms` (each token after it) of models that generate
with a cache; `latency_ms` (one forward pass of one example) of all others; `image_ms` (one example's images) where they
are encoded by themselves. With the models' checkpoints, `engine_prefill_ms` and `engine_decode_ms` are the same on the
native engine, which computes with packed weights as they are. The models' runs take turns, so that a busy machine
disturbs all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import DeviceError, ModelError
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.evaluate import meters
from gossamer.evaluate.intervals import median_ratio
from gossamer.models.reloading import generates

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from gossamer.engine.native.running import Native

PROMPT, NEW = 128, 8
"""Tokens of the prompt, at most, and tokens that are decoded after it in one run."""

ROUNDS, WARMUP = 15, 2
"""Runs of each stage that count, and runs before them."""

LARGE = 50_000_000
"""Above this many parameters, of the largest model, there are `FEW_ROUNDS`, and one before them."""

FEW_ROUNDS = 6
"""The fewest of which a ratio has a 95 % interval."""

RUNTIME = (
    "Unless an engine is named, latency and memory of the weights are those of plain transformers, which expands "
    "packed weights to 32-bit floats when it loads them"
)
"""What all figures here are of, for whoever reads them; without a full stop."""


@dataclass(frozen=True)
class Running:
    """What was measured.

    `figures`: for each model, in the order given, its stages' times, `weight_memory_bytes` (parameters and buffers
    as they lie in memory) and, where the native engine runs it, `engine_weight_bytes` (its decoder's weights there).
    `ratios`: for each stage that all models have, the second model's time by the first's.
    `notes`: a sentence on each stage that could not be timed.
    """

    figures: tuple[dict[str, Measure], ...]
    ratios: dict[str, Measure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Stage:
    """One stage: what is timed, in words, and its clock for a model, None where the model has no such stage."""

    what: str
    clock: Callable[[Any], meters.Clock | None]


@dataclass(frozen=True, eq=False)
class _Engine:
    """A model in the native engine."""

    model: nn.Module
    native: Native


def measure_running(
    models: Sequence[nn.Module],
    inputs: Mapping[str, Any],
    progress: Progress = SILENT,
    files: Sequence[Path | None] = (),
) -> Running:
    """Measures one model, or two side by side; all of them stay as they are.

    `inputs` are one example's inputs of a forward pass, `files` the models' checkpoints, for the native engine. A stage
    that fails is left out and said in `notes`.
    """
    figures: list[dict[str, Measure]] = [{} for _ in models]
    ratios: dict[str, Measure] = {}
    notes = []
    stages: list[tuple[str, _Stage, Sequence[Any]]] = [
        (key, stage, models) for key, stage in _stages(models, inputs).items()
    ]
    engines, missing = _engines(models, files)
    stages += [(key, stage, engines) for key, stage in _engine_stages(models).items() if engines]
    for key, stage, runners in progress.track(stages, "timing"):
        try:
            times = _times(stage, models, runners)
        except Exception as error:  # what a model cannot do must not cost the job that asks how fast it does it
            said = (str(error).strip().splitlines() or [""])[0]
            notes.append(f"{key} was not measured: {stage.what} failed with {type(error).__name__}: {said[:200]}")
            continue
        for number, row in times.items():
            figures[number][key] = meters.latency(row, f"median and quartiles after warm-up of {stage.what}")
        if len(times) == len(models) == 2:
            ratios[key] = median_ratio(times[0], times[1])
    for engine, mine in zip(engines, figures, strict=False):
        mine["engine_weight_bytes"] = Measure.exact(engine.native.weight_bytes)
    notes += missing
    for model, mine in zip(models, figures, strict=True):
        mine["weight_memory_bytes"] = Measure.exact(meters.memory_bytes(model))
    return Running(tuple(figures), ratios, tuple(notes))


def _times(stage: _Stage, models: Sequence[nn.Module], runners: Sequence[Any]) -> dict[int, NDArray[np.float64]]:
    """Milliseconds of a stage's runs, by the number of each model that has the stage; `runners` are what is timed."""
    clocks = {number: clock for number, runner in enumerate(runners) if (clock := stage.clock(runner)) is not None}
    if not clocks:
        return {}
    large = max(_parameters(model) for model in models) > LARGE
    repeats, warmup = (FEW_ROUNDS, 1) if large else (ROUNDS, WARMUP)
    return dict(zip(clocks, meters.in_turn(list(clocks.values()), repeats, warmup), strict=True))


def _stages(models: Sequence[nn.Module], inputs: Mapping[str, Any]) -> dict[str, _Stage]:
    """The stages by key. All models are timed on the same lengths."""
    prompt = min(_prompt(model) for model in models)

    def image(model: nn.Module) -> meters.Clock | None:
        try:
            return meters.image_clock(model, inputs)
        except ModelError:
            return None

    return {
        "prefill_ms": _Stage(
            f"a text prompt of {prompt} tokens",
            lambda model: meters.prefill_clock(model, prompt) if generates(model) else None,
        ),
        "decode_ms": _Stage(
            f"a token, {NEW} in a row after {prompt} cached ones",
            lambda model: meters.decode_clock(model, prompt, NEW) if generates(model) else None,
        ),
        "latency_ms": _Stage(
            "a forward pass of one example",
            lambda model: None if generates(model) else meters.forward_clock(model, inputs),
        ),
        "image_ms": _Stage("the encoding of one example's images", image),
    }


def _engines(models: Sequence[nn.Module], files: Sequence[Path | None]) -> tuple[list[_Engine], list[str]]:
    """The models in the native engine, all or none, and why not if they were to be."""
    if not files or None in files or not all(generates(model) for model in models):
        return [], []
    from gossamer.engine.native.lower import NotServedError
    from gossamer.engine.native.running import open_native

    try:
        pairs = [open_native(str(file)) for file in files]
    except (NotServedError, DeviceError) as error:
        return [], [f"nothing was timed on the native engine: {error}"]
    return [_Engine(opened.model, native) for opened, native in pairs], []


def _engine_stages(models: Sequence[nn.Module]) -> dict[str, _Stage]:
    prompt = min(_prompt(model) for model in models)
    return {
        "engine_prefill_ms": _Stage(
            f"a text prompt of {prompt} tokens on the native engine",
            lambda engine: meters.stepped_prefill_clock(engine.native(engine.model), engine.model, prompt),
        ),
        "engine_decode_ms": _Stage(
            f"a token on the native engine, {NEW} in a row after {prompt} cached ones",
            lambda engine: meters.stepped_decode_clock(engine.native(engine.model), engine.model, prompt, NEW),
        ),
    }


def _prompt(model: Any) -> int:
    """Tokens of a prompt that leaves room for the new ones."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROMPT + NEW
    return max(1, min(PROMPT, positions - NEW))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
