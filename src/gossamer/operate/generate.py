"""The `generate` job: one prompt, the model's answer as it comes, and how fast it came."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from gossamer.core.errors import SettingError
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.core.runfolder import checkpoint_of
from gossamer.data.images import load_image
from gossamer.engine.decode import Event, Request, decode, prompt_ids, room_for
from gossamer.engine.sampling import Sampling
from gossamer.engine.stepping import Stepper, StepperOf
from gossamer.evaluate.intervals import wilson
from gossamer.evaluate.meters import latency
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.operate.cache import KeyValues
from gossamer.operate.early_exit.decode import Left
from gossamer.operate.early_exit.wish import ExitWish
from gossamer.operate.speculate.decode import Statistics
from gossamer.operate.speculate.wish import Wish
from gossamer.operate.writer import Engine, open_writer


def generate(
    ref: str,
    prompt: str,
    images: Sequence[Path] = (),
    *,
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    raw: bool = False,
    speculate: Wish | None = None,
    early_exit: ExitWish | None = None,
    keeper: KeyValues | None = None,
    engine: Engine = "auto",
    on: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Lets the model, or the checkpoint of the run folder, `ref` continue a prompt (see `prompt_inputs`).

    `say` is given each piece of text as it comes; `sampling` is greedy by default; `keeper` says what is kept of past
    tokens, by default all; `speculate` how to draft, if at all; `early_exit` how tokens leave early, if at all, which
    is lossy; `engine` what runs the model, and `on` where (see `open_writer`; a keeper needs torch and the processor).
    Returns `text`, `tokens`, `finish_reason` (see
    `Finish`), `prompt_tokens`, `new_tokens`, and under `measured` `time_to_first_token_ms`, from the prompt's text and
    images on, of two tokens or more `time_per_token_ms`, and `cache_bytes`, what is held of past tokens at the end. If
    drafts were judged, `measured` has their `acceptance`: the share of places at which one was taken; `speculation` has
    the settings, `tokens_per_pass`, the `Statistics`, and whether it is `lossless`: a `keeper` that evicts or packs is
    swayed by drafts that are rejected later. `early_exit` has `blocks`, `threshold`, what `Left` counts, `calibration`
    if there was one, and whether it is `lossy`: not where it does not pay, and all is left to the whole model.

    Raises `ModelError` for a model that does not write from text, `DataError` for an image that cannot be read or a
    prompt that leaves no room in the context, `SettingError` for several drafts with a keeper or for early exit with
    either, and what `Wish.fitted`, `ExitWish.fitted` and the keeper do.
    """
    pictures = [load_image(path, "--image") for path in images]
    if early_exit is not None and (keeper is not None or speculate is not None):
        raise SettingError(
            "early exit needs a cache that keeps all, and no drafts: give --kv none and --speculate none"
        )
    writer = open_writer(checkpoint_of(ref), engine, on, keeper)
    opened = writer.opened
    if keeper is not None and speculate is not None and speculate.drafts > 1:
        raise SettingError(f"{speculate.drafts} drafts need a cache that keeps all: give --kv none, or --drafts 1")
    speculation = None if speculate is None else speculate.fitted(opened, prompt, pictures, raw, engine, on)
    leave, calibration = None, None
    if early_exit is not None:  # what is wrong with the prompt is said before the calibration
        room_for(opened.model, prompt_ids(opened.model, prompt_inputs(opened, prompt, pictures, raw)))
        leave, calibration = early_exit.fitted(checkpoint_of(ref), progress)
    count = Statistics()
    start = time.perf_counter()
    inputs = prompt_inputs(opened, prompt, pictures, raw)
    request = Request(inputs, sampling or Sampling(), max_tokens, tuple(stops))
    stepper = writer.stepper_of(opened.model)
    left = Left()
    whole = opened.model
    reading = writer.stepper_of if keeper is None else Stepper  # drafts look at all of the past
    stepper_of: StepperOf = lambda model: stepper if model is whole else reading(model)  # noqa: E731
    if leave is not None:
        coming = leave.decode(whole, request, opened.tokenizer, left, stepper_of)
    elif speculation is not None:
        coming = speculation.decode(whole, request, opened.tokenizer, count, stepper_of)
    else:
        coming = decode(whole, [request], opened.tokenizer, stepper_of)
    events: list[Event] = []
    times: list[tuple[int, float]] = []
    with writer.torch_threads():
        for event in coming:
            times.append((count.passes if speculation else len(events), 1000 * (time.perf_counter() - start)))
            events.append(event)
            say(event.text)
    measured = {"time_to_first_token_ms": latency([times[0][1]], "one run, from the prompt's text and images on")}
    if len(events) > 1:
        method = "median and quartiles of the tokens after the first"
        measured["time_per_token_ms"] = latency(_gaps(times), method + ", those of one pass alike" * bool(speculation))
    if count.judged:
        measured["acceptance"] = wilson(count.accepted, count.judged)
    measured["cache_bytes"] = Measure.exact(stepper.cache_bytes)
    told = {} if speculate is None else {"speculation": _told(speculate, count, keeper is None)}
    if early_exit is not None:
        told["early_exit"] = {
            "lossy": leave is not None,
            **({} if leave is None else asdict(leave)),
            **asdict(left),
            **({} if calibration is None else {"calibration": calibration.described()}),
        }
    if keeper is not None:
        told["kv"] = keeper.described
    return {
        "model": {"name": ref, "family": opened.hierarchy.family, "fingerprint": opened.fingerprint},
        "text": "".join(event.text for event in events),
        "tokens": [event.token for event in events],
        "finish_reason": events[-1].finished,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "new_tokens": len(events),
        "measured": {key: value.model_dump() for key, value in measured.items()},
        "sampling": asdict(request.sampling),
        "engine": writer.engine,
        **told,
    }


def _gaps(times: Iterable[tuple[int, float]]) -> Iterator[float]:
    """The time that each token after the first took, by the pass that it came from and when: tokens that one pass gave
    come at once, and share its time."""
    (_, last), *rest = times
    for _, together in groupby(rest, key=lambda each: each[0]):
        *_, (_, end) = group = list(together)
        yield from [(end - last) / len(group)] * len(group)
        last = end


def _told(wish: Wish, count: Statistics, lossless: bool) -> dict[str, Any]:
    per_pass = (count.accepted + count.passes) / count.passes if count.passes else None
    return {**asdict(wish), "lossless": lossless, "tokens_per_pass": per_pass, **asdict(count)}
