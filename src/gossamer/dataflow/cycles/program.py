"""Cycles of a whole program: the times of its steps, put together as `rtl/gs_sequencer.v` issues them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossamer.dataflow.cycles.gemm import gemm_cycles
from gossamer.dataflow.cycles.transfer import READ_LATENCY, WRITE_LATENCY, load_cycles, store_cycles
from gossamer.dataflow.cycles.vector import add_cycles, norm_cycles
from gossamer.dataflow.engine import UNITS, IntegerEngine
from gossamer.dataflow.schedule import Add, End, Fence, Gemm, Load, Norm, Schedule, Step, Store, unit


@dataclass(frozen=True)
class Cycles:
    """`total` from the fetch of the first instruction to End, `busy` of each unit: what the engine's counters hold."""

    total: int
    busy: Mapping[str, int]


@dataclass(frozen=True)
class Span:
    """A step at work: issued in cycle `issued`; its unit (none for `Fence` and `End`) is busy from cycle `start` until
    before `end`."""

    step: Step
    unit: str | None
    issued: int
    start: int
    end: int


def timeline(
    schedule: Schedule,
    registers: Sequence[int] = (),
    read_latency: int = READ_LATENCY,
    write_latency: int = WRITE_LATENCY,
) -> tuple[Span, ...]:
    """When each step of a program is at work, on its engine, when the bus never stalls.

    A step is fetched in one cycle and issued in the next, or when its unit is free, in order; the unit starts in the
    cycle after and is busy from the next one on.

    Args:
        schedule: ends with an `End`; what follows the first one is not run.
        registers: R[1], R[2], …
        read_latency: cycles from the address of a burst to its first word.
        write_latency: cycles from the last word of a burst to its answer.
    """
    values = (0, *registers)
    free = dict.fromkeys(UNITS, 0)
    spans = []
    now = 0
    for step in schedule:
        now = max([now + 1, *(free[name] for name in _awaited(step))])
        start = end = now + 2
        if name := unit(step):
            end += max(step_cycles(schedule.engine, step, values, read_latency, write_latency) - 1, 0)
            free[name] = end
        spans.append(Span(step, name, now, start, end))
        now += 1
        if isinstance(step, End):
            break
    return tuple(spans)


def schedule_cycles(
    schedule: Schedule,
    registers: Sequence[int] = (),
    read_latency: int = READ_LATENCY,
    write_latency: int = WRITE_LATENCY,
) -> Cycles:
    """Cycles of a program: the end of its `timeline`, whose arguments it takes."""
    spans = timeline(schedule, registers, read_latency, write_latency)
    busy = {name: sum(span.end - span.start for span in spans if span.unit == name) for name in UNITS}
    return Cycles(spans[-1].issued + 1 if spans else 0, busy)


def step_cycles(
    engine: IntegerEngine, step: Step, registers: Sequence[int], read_latency: int, write_latency: int
) -> int:
    """Cycles of one step in its unit, from the one with `start_i` to the first with `busy_o` low again; `registers` are
    R[0], R[1], …"""
    match step:
        case Load():
            return load_cycles(engine, step, registers, read_latency)
        case Store():
            return store_cycles(engine, step, write_latency)
        case Gemm():
            return gemm_cycles(engine, step, registers)
        case Norm():
            return norm_cycles(engine, step)
        case Add():
            return add_cycles(engine, step)
        case Fence() | End():
            return 0


def _awaited(step: Step) -> list[str]:
    """The units that must rest before a step is issued."""
    if isinstance(step, Fence):
        return [name for name in UNITS if getattr(step, name)]
    own = unit(step)
    return [own] if own else list(UNITS)
