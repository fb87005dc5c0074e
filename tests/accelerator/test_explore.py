"""Exploration: the sweep, the front, the choice within a budget, what is said where there is none, and the files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from gossamer.accelerator.area import AREAS, AreaModel
from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.explore import Grid, Point, choose, explore, front, parse_sweep
from gossamer.accelerator.explore_job import explore_job
from gossamer.accelerator.limits import Limits, parse_limits
from gossamer.accelerator.shape_of import of_config, of_stack, shape_of
from gossamer.accelerator.shapes import SHAPES, Shape, hollow
from gossamer.accelerator.whole import whole
from gossamer.cli.main import app
from gossamer.core.errors import BudgetError, GossamerError, ModelError, SettingError
from gossamer.dataflow.technology import TECHNOLOGIES

SHAPE = Shape("little", 4, 64, 4, 2, 128, 16, gated=True, rotary=True, causal=True, centred=False)
GRID = Grid(rows=(8, 16), columns=(8,), depth=(8, 16), lanes=(4,), memory=(16 << 10, 256 << 10), bits=(8, 4))
BASE, PROCESS = ENGINES.load("small"), TECHNOLOGIES.load("sg13g2")


@pytest.fixture(scope="module")
def found() -> tuple[list[Point], dict[str, int]]:
    return explore(SHAPE, "prefill", 24, BASE, PROCESS, AREAS.load("sg13g2"), GRID)


def test_every_engine_is_a_point_or_counted(found: tuple[list[Point], dict[str, int]]) -> None:
    points, skipped = found
    assert len(points) + sum(skipped.values()) == GRID.size
    assert len(points) == 8
    assert skipped["depth is …; a tile of … columns must fill whole chunks"] == 6
    for point in points:
        assert point.engine.four_bit == (point.bits == 4)
        assert 0 < point.utilisation_percent <= 100


def test_what_does_not_fit_is_counted_by_reason() -> None:
    grid = Grid((8, 16), (16,), (16,), (4,), (64 << 10,), (8,))
    points, skipped = explore(SHAPES["deit-s"], "prefill", 24, BASE, PROCESS, AREAS.load("sg13g2"), grid)
    assert not points
    assert sum(skipped.values()) == 2
    assert all("…" in reason and "memory" in reason for reason in skipped)


def test_a_point_is_what_its_engine_takes(found: tuple[list[Point], dict[str, int]]) -> None:
    point = found[0][0]
    taken = whole(SHAPE, "prefill", 24, point.engine, PROCESS, bits=point.bits)
    assert (point.cycles, point.energy_mj) == (taken.cycles, sum(taken.energy_mj.values()))
    assert point.latency_ms == pytest.approx(point.cycles / PROCESS.clock_mhz / 1e3)


def test_all_blocks_from_two() -> None:
    three, two, one = (whole(SHAPE, "decode", 24, BASE, PROCESS, layers).cycles for layers in (3, 2, 1))
    assert three - two == two - one > 0


def test_four_bits_read_half_the_weights() -> None:
    eight, four = (whole(SHAPE, "decode", 24, BASE, PROCESS, bits=bits) for bits in (8, 4))
    assert 0.4 < four.energy_mj["dram"] / eight.energy_mj["dram"] < 0.75


def _point(latency: float, area: float, energy: float) -> Point:
    return Point(BASE, 8, 1, 50.0, latency, area, energy)


def test_the_front_is_what_no_other_beats() -> None:
    points = [_point(*each) for each in ((1, 9, 5), (2, 5, 5), (2, 6, 5), (3, 5, 4), (4, 9, 9), (1, 9, 5))]
    assert front(points) == [points[0], points[1], points[3]]
    for point in set(points) - set(front(points)):
        assert any(
            a.latency_ms <= point.latency_ms and a.area_mm2 <= point.area_mm2 and a.energy_mj <= point.energy_mj
            for a in front(points)
        )


def test_the_choice_is_the_best_within_the_budget() -> None:
    points = [_point(1, 9, 5), _point(2, 5, 7), _point(3, 4, 3)]
    assert choose(points, Limits()) is points[0]
    assert choose(points, Limits(area_mm2=5)) is points[1]
    assert choose(points, Limits(area_mm2=5), "energy") is points[2]


def test_what_is_said_where_no_engine_keeps_the_budget() -> None:
    points = [_point(1, 9, 5), _point(2, 5, 7)]
    with pytest.raises(BudgetError, match=r"area 4 mm² is below the least, 5 mm².*nearest is .* 5 mm²"):
        choose(points, Limits(area_mm2=4, latency_ms=3))
    with pytest.raises(BudgetError, match=r"area and latency exclude each other.* 2 ms, 5 mm²"):
        choose(points, Limits(area_mm2=6, latency_ms=1.5))


def test_limits_as_people_write_them() -> None:
    assert parse_limits("area=40mm2, latency=500us,energy=2J") == Limits(40.0, 0.5, 2000.0)
    assert parse_limits("area=3") == Limits(area_mm2=3.0)
    assert parse_limits("") == Limits()


@pytest.mark.parametrize(
    "text", ["area", "size=3", "area=3ms", "latency=0", "area=1,area=2", "energy=1e999", "area=-1"]
)
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_limits(text)


def test_sweeps() -> None:
    grid = parse_sweep(["rows=4,8,4", "memory=1MiB"], Grid())
    assert (grid.rows, grid.memory) == ((4, 8), (1 << 20,))
    for text in ("rows", "wings=2", "rows=many", "bits=3", "memory=big"):
        with pytest.raises(SettingError, match=text.split("=")[0]):
            parse_sweep([text], Grid())


def test_shapes_of_stacks_and_configs() -> None:
    assert of_stack(hollow(SHAPE, 4)) == SHAPE
    assert shape_of("deit-s") is SHAPES["deit-s"]
    tower, text = shape_of("tiny-vlm", "vision"), shape_of("tiny-vlm")
    assert (tower.layers, tower.width, tower.inner, tower.gated) == (4, 192, 768, False)
    assert (text.head, text.inner, text.gated, text.causal) == (48, 512, True, True)
    with pytest.raises(ModelError, match="mamba"):
        of_config(SimpleNamespace(model_type="mamba"), "it")
    with pytest.raises(ModelError, match="leave the part out"):
        shape_of("tiny-lm", "vision")


SWEEP = ["rows=8", "columns=8", "depth=8", "lanes=2,4", "memory=256KiB", "bits=8"]


def test_the_job_writes_an_engine_and_a_trace(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = explore_job("tiny-lm", sequence=16, sweep=SWEEP, out=out)
    assert ENGINES.load(str(out / "engine.yaml")).model_dump() == result["chosen"]["engine"]
    slices = [event for event in json.loads((out / "trace.json").read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == sum(bar["steps"] for bar in result["timeline"]["bars"])
    assert sum(result["chosen"]["area_um2"].values()) == pytest.approx(1e6 * result["chosen"]["area_mm2"])
    assert [point["chosen"] for point in result["points"]].count(True) == 1


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("deit-s", {"phase": "decode"}, "no decoder"),
        ("deit-s", {"technology": "none"}, "technology none does not exist"),
        ("tiny-lm", {"sweep": ["memory=16KiB"], "sequence": 16}, "no engine of the grid"),
        ("tiny-lm", {"goal": "fame"}, "goal"),
    ],
)
def test_faults(model: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(GossamerError, match=said):
        explore_job(model, **settings)


def test_the_command_writes_a_page_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["accelerator", "explore", "tiny-lm", "--sequence", "16", *(w for each in SWEEP for w in ("--sweep", each))]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f'data-chart="{name}-chart"' in page for name in ("points", "area", "time"))
    assert "http://" not in page.split("<script>")[0]
    assert len(result["pareto"]) <= len(result["points"]) == 2
    refused = CliRunner().invoke(app, [*words, "--budget", "area=1um2", "--out", str(tmp_path / "none")])
    assert isinstance(refused.exception, BudgetError)
    assert not (tmp_path / "none").exists()


def test_area_is_in_the_points() -> None:
    flat = AreaModel(units={"all": {"one": 2e6}}, sram_um2_per_bit=1e-9, source="")
    points, _ = explore(SHAPE, "prefill", 24, BASE, PROCESS, flat, Grid((8,), (8,), (8,), (4,), (256 << 10,), (8,)))
    assert points[0].area_mm2 == pytest.approx(2.0, rel=1e-3)
