"""A timeline to look at: as a trace in Chrome's format, which Perfetto (ui.perfetto.dev) and chrome://tracing draw, and
as bars of a chart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gossamer.dataflow.cycles.program import Span
from gossamer.dataflow.engine import UNITS
from gossamer.dataflow.schedule import Add, Gemm, Load, Norm, Step, Store


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


@dataclass(frozen=True)
class Bar:
    """Steps of one unit and kind that follow each other, from cycle `start` until before `end`, `busy` of these."""

    unit: str
    kind: str
    start: int
    end: int
    busy: int
    steps: int


def bars(spans: Sequence[Span], most: int = 1200) -> list[Bar]:
    """The timeline with neighbours of one unit and kind joined where less than 1 / `most` of it lies between them."""
    gap = max((span.end for span in spans), default=0) / most
    found: list[Bar] = []
    last: dict[str, int] = {}
    for span in spans:
        if span.unit is None:
            continue
        taken, at = span.end - span.start, last.get(span.unit)
        if at is not None and found[at].kind == kind(span.step) and span.start - found[at].end < gap:
            old = found[at]
            found[at] = Bar(old.unit, old.kind, old.start, span.end, old.busy + taken, old.steps + 1)
            continue
        last[span.unit] = len(found)
        found.append(Bar(span.unit, kind(span.step), span.start, span.end, taken, 1))
    return found


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
    return f"{kind(step)} {step.m} × {step.n}" if isinstance(step, Norm | Add) else kind(step)


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(value, "name", value) for name, value in asdict(step).items()}
