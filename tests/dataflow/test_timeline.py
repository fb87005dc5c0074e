"""The timeline: units take one step at a time, in order, after what fences wait for; its end is the program's."""

import json
from itertools import pairwise

import pytest

from gossamer.dataflow.cycles.program import schedule_cycles, timeline
from gossamer.dataflow.cycles.trace import bars, chrome_trace
from gossamer.dataflow.engine import UNITS, IntegerEngine
from gossamer.dataflow.schedule import End, Fence, Gemm, Load, Mode, Norm, Schedule, Store, Tensor

ENGINE = IntegerEngine()
STEPS = (
    Load(0, Tensor(0, 4), 64),
    Load(4096, Tensor(64, 4), 64),
    Fence(load=True, store=False, compute=False),
    Gemm(Tensor(0, 4), Tensor(1024, 4), Tensor(2048, 4), 16, 16, 32, Mode.INT8),
    Load(8192, Tensor(128, 4), 8),
    Fence(load=False, store=False, compute=True),
    Norm(Tensor(0, 4), Tensor(3072, 4), 8, 16, 0, 12),
    Store(16384, Tensor(2048, 4), 4),
    End(),
    Load(0, Tensor(0, 4), 64),
)
SPANS = timeline(Schedule(ENGINE, STEPS))


def test_what_follows_the_end_is_not_run() -> None:
    assert [span.step for span in SPANS] == list(STEPS[:-1])


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_does_one_step_at_a_time(unit: str) -> None:
    mine = [span for span in SPANS if span.unit == unit]
    assert mine
    assert all(span.end > span.start for span in mine)
    assert all(after.start > before.end for before, after in pairwise(mine))


def test_steps_wait_for_fences_and_units_work_side_by_side() -> None:
    first, second, _, product, third, _, norm, store, end = SPANS
    assert product.start > max(first.end, second.end)
    assert norm.start > product.end
    assert third.start < product.end
    assert store.start < norm.end
    assert end.issued >= max(span.end for span in SPANS[:-1])


def test_cycles_are_those_of_the_timeline() -> None:
    found = schedule_cycles(Schedule(ENGINE, STEPS))
    assert found.total == SPANS[-1].issued + 1
    assert sum(found.busy.values()) == sum(span.end - span.start for span in SPANS if span.unit)


def test_the_trace_is_what_perfetto_reads() -> None:
    trace = json.loads(json.dumps(chrome_trace(SPANS, clock_mhz=100)))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == sum(span.unit is not None for span in SPANS)
    product = next(event for event in slices if event["name"] == "int8 16 × 16 × 32")
    assert product["ts"] == SPANS[3].start / 100
    assert product["dur"] == (SPANS[3].end - SPANS[3].start) / 100
    tracks = {
        event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event.get("name") == "thread_name"
    }
    assert tracks[product["tid"]] == "compute"


def test_bars_join_neighbours_and_lose_no_work() -> None:
    for most in (1, 10, 10**6):
        found = bars(SPANS, most)
        assert sum(bar.steps for bar in found) == sum(span.unit is not None for span in SPANS)
        for unit, busy in schedule_cycles(Schedule(ENGINE, STEPS)).busy.items():
            assert sum(bar.busy for bar in found if bar.unit == unit) == busy
    assert len(bars(SPANS, 1)) == 4
    assert len(bars(SPANS, 10**6)) == 6
