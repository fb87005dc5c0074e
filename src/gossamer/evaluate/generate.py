"""The `generate` job: one prompt, the model's answer as it comes, and how fast it came."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from gossamer.core.errors import ModelError
from gossamer.core.outcome import Measure
from gossamer.core.runfolder import checkpoint_of
from gossamer.data.images import load_image
from gossamer.engine.decode import Event, Request, decode
from gossamer.engine.sampling import Sampling
from gossamer.engine.stepping import Keeper, Stepper
from gossamer.evaluate.meters import latency
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.models.open import open_model


def generate(
    ref: str,
    prompt: str,
    images: Sequence[Path] = (),
    *,
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    raw: bool = False,
    keeper: Keeper | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Lets the model, or the checkpoint of the run folder, `ref` continue a prompt (see `prompt_inputs`).

    `say` is given each piece of text as it comes; `sampling` is greedy by default; `keeper` says what is kept of past
    tokens, by default all. Returns `text`, `tokens`,
    `finish_reason` (see `Finish`), `prompt_tokens`, `new_tokens`, and under `measured` `time_to_first_token_ms`, from
    the prompt's text and images on, of two tokens or more `time_per_token_ms`, and `cache_bytes`, what is held of past
    tokens at the end. Raises `ModelError` for a model
    that does not write from text, `DataError` for an image that cannot be read or a prompt that leaves no room in the
    context.
    """
    pictures = [load_image(path, "--image") for path in images]
    opened = open_model(checkpoint_of(ref))
    if getattr(opened.config, "is_encoder_decoder", False) or not getattr(opened.model, "can_generate", bool)():
        raise ModelError(f"{ref} does not continue text: give a language or vision-language model")
    start = time.perf_counter()
    inputs = prompt_inputs(opened, prompt, pictures, raw)
    request = Request(inputs, sampling or Sampling(), max_tokens, tuple(stops))
    events: list[Event] = []
    times: list[float] = []
    stepper = Stepper(opened.model, keeper)
    for event in decode(opened.model, [request], opened.tokenizer, lambda model: stepper):
        times.append(1000 * (time.perf_counter() - start))
        events.append(event)
        say(event.text)
    measured = {"time_to_first_token_ms": latency(times[:1], "one run, from the prompt's text and images on")}
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if gaps:
        measured["time_per_token_ms"] = latency(gaps, "median and quartiles of the tokens after the first")
    measured["cache_bytes"] = Measure.exact(stepper.cache_bytes)
    return {
        "model": {"name": ref, "family": opened.hierarchy.family, "fingerprint": opened.fingerprint},
        "text": "".join(event.text for event in events),
        "tokens": [event.token for event in events],
        "finish_reason": events[-1].finished,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "new_tokens": len(events),
        "measured": {key: value.model_dump() for key, value in measured.items()},
        "sampling": asdict(request.sampling),
    }
