"""Table I: blocks are alike, sizes are the published ones, energy is counted."""

from itertools import pairwise

import pytest

from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.program import lower_prefill
from gossamer.accelerator.shapes import SHAPES, Shape, hollow
from gossamer.accelerator.table1 import Case, row
from gossamer.dataflow.cycles.program import schedule_cycles, timeline
from gossamer.dataflow.technology import TECHNOLOGIES, energy_mj

PROCESS = TECHNOLOGIES.load("sg13g2")


def test_operations_of_published_models() -> None:
    """4 d² S + 2 S² d + 2 d f S in each block."""
    base = SHAPES["roberta-base"]
    assert 12 * base.macs(128) == 12 * (4 * 768**2 * 128 + 2 * 128**2 * 768 + 2 * 768 * 3072 * 128)
    llama = SHAPES["llama-3-8b"]
    assert llama.macs(1, 0) == 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 2 * 4096


def test_more_blocks_are_more_of_the_same() -> None:
    engine = ENGINES.load("large")
    shape = Shape("tiny", 3, 96, 4, 4, 192, 24, post=True)
    taken = [schedule_cycles(lower_prefill(hollow(shape, n), engine, 40).schedule).total for n in (1, 2, 3)]
    assert taken[2] - taken[1] == pytest.approx(taken[1] - taken[0], rel=0.01)


@pytest.mark.parametrize(("model", "rows"), [("deit-s", 197), ("roberta-base", 128)])
def test_a_block_is_not_kept_waiting(model: str, rows: int) -> None:
    """Weights and the next head's values are there before the array needs them: few cycles pass between its steps."""
    program = lower_prefill(hollow(SHAPES[model], 2), ENGINES.load("large"), rows)
    busy = [span for span in timeline(program.schedule) if span.unit == "compute"]
    second = busy[len(busy) // 2 :]
    idle = sum(after.start - before.end for before, after in pairwise(second))
    assert idle < 0.025 * (second[-1].end - second[0].start)


@pytest.mark.parametrize("case", [Case("deit-s", "prefill", 197), Case("deit-s", "prefill", 64)])
def test_a_row(case: Case) -> None:
    engine = ENGINES.load("large")
    found = row(case, engine, PROCESS)
    assert found["macs"] == 12 * SHAPES["deit-s"].macs(case.sequence)
    assert found["cycles"] * found["pes"] > found["macs"]
    assert found["utilisation_percent"] == pytest.approx(100 * found["macs"] / found["cycles"] / found["pes"])
    assert found["latency_ms"] == pytest.approx(found["cycles"] / PROCESS.clock_mhz / 1e3)
    assert found["energy_mj"] == pytest.approx(sum(found["energy_parts_mj"].values()))


def test_energy_of_the_array_is_that_of_its_tiles() -> None:
    engine = ENGINES.load("large")
    program = lower_prefill(hollow(SHAPES["deit-s"], 1), engine, 32)
    spent = energy_mj(program.schedule, 1000, PROCESS)
    least = SHAPES["deit-s"].macs(32) * PROCESS.mac_pj * 1e-9
    assert least <= spent["array"] <= 1.5 * least
    assert spent["static"] == pytest.approx(1000 / (PROCESS.clock_mhz * 1e6) * PROCESS.static_mw)
