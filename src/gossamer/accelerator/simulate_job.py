"""A prompt or an image through the engine: opened, encoded, verified, counted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.integer_files import load_integer
from gossamer.accelerator.integer_model import IntegerModel
from gossamer.accelerator.verify import Phase, verify
from gossamer.core.errors import DataError
from gossamer.core.progress import SILENT, Progress
from gossamer.dataflow.engine import IntegerEngine
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.models.open import Opened, open_model


def simulate_job(
    program: Path,
    config: str,
    *,
    tokens: int = 0,
    prompt: str = "",
    image: Path | None = None,
    stalls: float = 0.0,
    seed: int = 0,
    rtl: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Runs an integer model on the engine `config` and compares the RTL with the golden model (see `verify`).

    Raises:
        GossamerError: what cannot be opened, does not fit the engine, or is not what the model reads.
    """
    engine = ENGINES.load(config)
    model = load_integer(program)
    opened = open_model(model.source)
    example = read_example(model, opened, prompt, image)
    tokenizer = getattr(opened, "tokenizer", None)
    end = getattr(tokenizer, "eos_token_id", None)
    found = verify(
        model, engine, example, tokens, rtl=rtl, stalls=stalls, seed=seed, end=() if end is None else (int(end),),
        progress=progress,
    )  # fmt: skip
    return {
        "model": model.source,
        "engine": engine.model_dump(),
        "simulated": "rtl" if rtl else "golden machine",
        "mismatches": found.mismatches,
        "cycles": found.cycles,
        "model_cycles": found.model_cycles,
        "utilisation": _utilisation(found.phases.values(), engine),
        "phases": {name: _phase(phase, engine) for name, phase in found.phases.items()},
        "tokens": found.tokens,
        "text": tokenizer.decode(found.tokens) if tokenizer is not None and found.tokens else "",
        "stalls": stalls,
        "seed": seed,
    }


def read_example(model: IntegerModel, opened: Opened, prompt: str, image: Path | None) -> Mapping[str, Tensor]:
    """What the model reads of a prompt and an image.

    Raises:
        DataError: one that is missing, or cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    pictures = []
    if image is not None:
        try:
            pictures = [Image.open(image).convert("RGB")]
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{image} is no image that can be read: {error}") from error
    if model.wiring.text is not None:
        if not prompt:
            raise DataError("the model reads text: give --prompt")
        inputs = prompt_inputs(opened, prompt, pictures)
        return {name: value[0] if name == "input_ids" else value for name, value in inputs.items()}
    if not pictures or opened.processor is None:
        raise DataError("the model reads images: give --image, and a model with a processor for it")
    return dict(opened.processor(images=pictures, return_tensors="pt"))


def _phase(phase: Phase, engine: IntegerEngine) -> dict[str, Any]:
    return {
        "runs": phase.runs,
        "cycles": phase.cycles,
        "model_cycles": phase.model_cycles,
        "macs": phase.macs,
        "utilisation": _utilisation([phase], engine),
        "busy_cycles": phase.busy,
        "beats_read": phase.beats_read,
        "beats_written": phase.beats_written,
    }


def _utilisation(phases: Any, engine: IntegerEngine) -> float:
    """Multiply-accumulates by those that all multipliers could have done."""
    found = list(phases)
    cycles = sum(phase.cycles for phase in found)
    return sum(phase.macs for phase in found) / (cycles * engine.multipliers) if cycles else 0.0
