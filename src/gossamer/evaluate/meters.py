"""Meters: time of prefill, decode and image encoding; peak memory; bytes of weights on disk and in memory.

Time is wall-clock on the machine at hand. What is timed is a `Clock`: `prefill_clock` and its like make them for the
stages of a model, `in_turn` runs them, `latency` sums up: the median of repeated runs after warm-up, its `low` and
`high` the quartiles (not a confidence interval), as `method` says. Lengths are what is timed, so random inputs do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import ModelError
from gossamer.core.outcome import Measure
from gossamer.engine.forward import device_of, place_ids, placed
from gossamer.engine.threads import torch_threads
from gossamer.models.stored import read_header

if TYPE_CHECKING:
    from torch import nn

    from gossamer.engine.stepping import Steps

T = TypeVar("T")
Clock = Callable[[], float]
"""Does something once and returns how many milliseconds the part that counts took."""


def in_turn(clocks: Sequence[Clock], repeats: int = 10, warmup: int = 2) -> NDArray[np.float64]:
    """Milliseconds of each run, (clocks, repeats): one run of each clock, then one of each again, and so on.

    What slows the machine down for a while so meets all of them alike. The first `warmup` rounds do not count.
    """
    times = [[clock() for clock in clocks] for _ in range(warmup + repeats)]
    return np.array(times[warmup:], dtype=np.float64).T


def latency(times: Iterable[float], method: str = "median and quartiles") -> Measure:
    """Milliseconds: median with quartiles of the runs' `times`."""
    numbers = np.fromiter(times, dtype=np.float64)
    low, middle, high = (float(v) for v in np.quantile(numbers, (0.25, 0.5, 0.75)))
    return Measure(value=middle, low=low, high=high, n=len(numbers), method=method)


def clock_of(run: Callable[[], Any], device: Any = None) -> Clock:
    """The clock of `run()`. On a GPU `device`, it is waited for before the time is read."""
    wait = _waiter(device)

    def clock() -> float:
        wait()
        start = time.perf_counter()
        run()
        wait()
        return (time.perf_counter() - start) * 1000

    return clock


def forward_clock(model: nn.Module, inputs: Mapping[str, Any]) -> Clock:
    """From the `inputs` of one forward pass, which are the model's keyword arguments, to its output."""
    import torch

    device = device_of(model)
    given = placed(inputs, device)

    def run() -> None:
        with torch.inference_mode():
            model(**given)

    return clock_of(run, device)


def prefill_clock(model: nn.Module, tokens: int = 128, batch: int = 1) -> Clock:
    """From a prompt of `tokens` tokens to the logits of the next one, caches being filled."""
    import torch

    ids, device = _random_ids(model, batch, tokens)

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=True)

    return clock_of(run, device)


def decode_clock(model: nn.Module, context: int = 128, new: int = 16, batch: int = 1) -> Clock:
    """Each of `new` tokens after `context` cached ones, one at a time.

    The prompt is read again before every run, outside the time that counts, so that each starts from the same cache.
    """
    import torch

    ids, device = _random_ids(model, batch, context)
    wait = _waiter(device)

    def clock() -> float:
        with torch.inference_mode():
            cache = model(input_ids=ids, use_cache=True).past_key_values
            wait()
            start = time.perf_counter()
            for place in range(new):
                token = ids[:, place % context, None]
                cache = model(input_ids=token, past_key_values=cache, use_cache=True).past_key_values
            wait()
            return (time.perf_counter() - start) * 1000 / new

    return clock


def stepped_prefill_clock(stepper: Steps, model: nn.Module, tokens: int = 128) -> Clock:
    """From a prompt of `tokens` tokens to the logits of the next one, read by `stepper`, which is one of `model`."""
    import torch

    ids, _ = _random_ids(model, 1, tokens)

    def run() -> None:
        with torch.inference_mode(), torch_threads(1):
            stepper.prefill([{"input_ids": ids}])

    return clock_of(run)


def stepped_decode_clock(stepper: Steps, model: nn.Module, context: int = 128, new: int = 16) -> Clock:
    """Each of `new` tokens after `context` ones that `stepper`, which is one of `model`, has read before."""
    import torch

    ids, _ = _random_ids(model, 1, context)

    def clock() -> float:
        with torch.inference_mode(), torch_threads(1):
            stepper.prefill([{"input_ids": ids}])
            start = time.perf_counter()
            for place in range(new):
                stepper.step([int(ids[0, place % context])], [True])
            return (time.perf_counter() - start) * 1000 / new

    return clock


def image_clock(model: nn.Module, inputs: Mapping[str, Any]) -> Clock:
    """From images to what stands for them: the vision part alone, projector included where the model has one.

    `inputs` are a batch's inputs; those that the model's `get_image_features` takes are used. Raises `ModelError` if
    the model encodes no images.
    """
    import inspect

    import torch

    inner = getattr(model, "base_model", model)
    encode = getattr(model, "get_image_features", None) or getattr(inner, "get_image_features", None)
    if encode is None:
        raise ModelError("this model encodes no images: image latency needs a vision-language model")
    device = device_of(model)
    known = set(inspect.signature(encode).parameters) - {"input_ids", "attention_mask"}
    given = {key: value.to(device) for key, value in inputs.items() if key in known}
    if "pixel_values" not in given:
        raise ModelError("image latency needs pixel_values among the inputs")

    def run() -> None:
        with torch.inference_mode():
            encode(**given)

    return clock_of(run, device)


def peak_memory(run: Callable[[], T], *, interval_s: float = 0.002) -> tuple[T, Measure]:
    """The result of `run()` and how many bytes of resident memory (RSS) it added at its highest.

    A thread samples this process every `interval_s`: memory that stays shorter than that can be missed, and memory
    that was freed before but kept by the allocator is not counted again. Run it in a fresh process for a whole
    job's footprint.
    """
    import gc

    import psutil

    gc.collect()
    process = psutil.Process()
    base = process.memory_info().rss
    peak, samples = base, 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak, samples
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            samples += 1
            done.wait(interval_s)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = run()
        peak = max(peak, process.memory_info().rss)
    finally:
        done.set()
        thread.join()
    added = float(peak - base)
    return result, Measure(value=added, low=added, high=added, n=1, method=f"RSS above the start, {samples} samples")


def process_peak_bytes() -> int:
    """The highest resident memory of this process since it started, as the operating system counts it."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in `ru_maxrss` also what the process that started this one held then
        return 1024 * next(
            int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def disk_bytes(path: Path) -> int:
    """Bytes of all tensors in the safetensors files of a directory (or in one file), headers not counted.

    Raises `ModelError` if there is none, or a header is damaged.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ModelError(f"{path} holds no safetensors file: weight bytes are read from their headers")
    return sum(tensor.bytes for file in files for tensor in read_header(file))


def memory_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers of a model take in memory, shared tensors once."""
    seen: dict[tuple[int, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        seen[(storage.data_ptr() or id(tensor), storage.nbytes())] = storage.nbytes()
    return sum(seen.values())


def _waiter(device: Any) -> Callable[[], None]:
    if device is not None and getattr(device, "type", str(device)) == "cuda":
        import torch

        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _random_ids(model: nn.Module, batch: int, tokens: int) -> tuple[Any, Any]:
    """Token ids that stand for text: below every special token that a vision model would look for an image at."""
    import torch

    config: Any = model.config
    text = config.get_text_config()
    special = place_ids(config)
    usable = torch.tensor([i for i in range(min(text.vocab_size, 4096)) if i not in special])
    picks = torch.randint(len(usable), (batch, tokens), generator=torch.Generator().manual_seed(0))
    device = device_of(model)
    return usable[picks].to(device), device
