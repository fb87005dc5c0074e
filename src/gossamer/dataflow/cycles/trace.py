"""A timeline as a trace in Chrome's format, which Perfetto (ui.perfetto.dev) and chrome://tracing draw."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gossamer.dataflow.cycles.program import Span
from gossamer.dataflow.engine import UNITS
from gossamer.dataflow.schedule import Fence, Gemm, Load, Step, Store


def chrome_trace(spans: Sequence[Span], clock_mhz: float, name: str = "engine") -> dict[str, Any]:
    """The trace as JSON: a track for each unit, a slice for each step, with the step's fields as its arguments.

    Times are microseconds at `clock_mhz`; `args.cycles` are cycles.
    """
    events: list[dict[str, Any]] = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": name}}]
    for track, unit in enumerate(UNITS):
        events.append({"ph": "M", "pid": 0, "tid": track, "name": "thread_name", "args": {"name": unit}})
        events += [
            {
                "ph": "X", "pid": 0, "tid": track, "name": label(span.step), "cat": kind(span.step),
                "ts": span.start / clock_mhz, "dur": (span.end - span.start) / clock_mhz,
                "args": {"start": span.start, "cycles": span.end - span.start, **_fields(span.step)},
            }
            for span in spans if span.unit == unit
        ]  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def kind(step: Step) -> str:
    """What a step does, in a word: a product's mode, where a load goes, or the step's name."""
    if isinstance(step, Gemm):
        return step.mode.name.lower()
    if isinstance(step, Load):
        return "load" if step.space.name == "SRAM" else f"load {step.space.name.lower()}"
    return type(step).__name__.lower()


def label(step: Step) -> str:
    """The step in a few words, with its sizes."""
    if isinstance(step, Gemm):
        return f"{kind(step)} {step.m} × {step.n} × {step.k}"
    if isinstance(step, Load | Store):
        rows = f" × {step.chunks} chunks" if step.chunks else ""
        return f"{kind(step)} {step.count}{rows}"
    return kind(step) if isinstance(step, Fence) or not hasattr(step, "m") else f"{kind(step)} {step.m} × {step.n}"


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(value, "name", value) for name, value in asdict(step).items()}
