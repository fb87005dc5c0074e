"""Power: by hand where that can be done, nothing for what stands still, and more for what moves more."""

from pathlib import Path

import numpy as np
import pytest
from rtl_files import fifo, mac, written
from test_liberty import TINY, real_library

from gossamer.core.errors import SettingError
from gossamer.eda import opensta, tools
from gossamer.eda.liberty import read_liberty
from gossamer.eda.power import METHODS, estimate_power
from gossamer.eda.tools import ToolError

MHZ = 1e6
NEEDS_OPENSTA = pytest.mark.skipif(not opensta.usable(), reason="needs OpenSTA 3 or newer")


def test_a_toggling_register_by_hand(tmp_path: Path) -> None:
    text = "module top(input clk, input d, output q);\n  reg r;\n"
    design = written(tmp_path, text + "  always @(posedge clk) r <= d;\n  assign q = ~r;\nendmodule\n")
    moving = estimate_power(design, TINY, {"d": np.arange(3001) % 2}, 100 * MHZ, by="liberty")
    cells = read_liberty(TINY).cells
    # d toggles each cycle, so does the register, which drives the inverter
    rate = 2999 / 3000  # its first value is the one it starts with
    assert moving.switching_w == pytest.approx(cells["INV"].inputs["A"] * 1.5**2 / 2 * 100 * MHZ * rate)
    assert moving.internal_w == pytest.approx((cells["DFF"].energy + cells["INV"].energy) * 100 * MHZ * rate)
    assert moving.clock_w == pytest.approx((2 * cells["DFF"].clock_energy + 3e-15 * 1.5**2) * 100 * MHZ)
    assert moving.leakage_w == pytest.approx(cells["DFF"].leakage + cells["INV"].leakage)
    still = estimate_power(design, TINY, {"d": np.zeros(100, int)}, 100 * MHZ, by="liberty")
    assert (still.switching_w, still.internal_w, still.activity) == (0, 0, 0)
    assert (still.clock_w, still.leakage_w) == (moving.clock_w, moving.leakage_w)
    assert still.method == METHODS["liberty"]


def operands(scale: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    ones, zeros = np.ones(500, int), np.zeros(500, int)
    a, b = random.integers(-scale, scale, (2, 500))
    return {"rst": zeros, "en": ones, "clear": ones, "a": a, "b": b}


@NEEDS_OPENSTA
def test_opensta_sums_up_the_same_toggles(tmp_path: Path) -> None:
    """Charging the loads is the same sum; inside cells its tables are read at the slews and loads of this netlist."""
    text = "module top(input clk, input d, output q);\n  reg r;\n"
    design = written(tmp_path, text + "  always @(posedge clk) r <= d;\n  assign q = ~r;\nendmodule\n")
    columns = {"d": np.arange(3001) % 3 == 0}
    mine, other = (estimate_power(design, TINY, columns, 100 * MHZ, by=by) for by in ("liberty", "opensta"))
    assert (mine.method, other.method) == tuple(METHODS.values())
    assert other.activity == mine.activity > 0
    assert other.switching_w == pytest.approx(mine.switching_w, rel=1e-3)
    assert other.leakage_w == pytest.approx(mine.leakage_w, rel=1e-3)
    assert other.internal_w + other.clock_w == pytest.approx(mine.internal_w + mine.clock_w, rel=0.5)
    still = estimate_power(design, TINY, {"d": np.zeros(100, int)}, 100 * MHZ, by="opensta")
    assert still.switching_w == 0 < still.total_w < other.total_w


@NEEDS_OPENSTA
def test_opensta_on_a_real_process() -> None:
    """Inside cells it takes more, as real slews are slower than the fastest of the library."""
    mine, other = (
        estimate_power(mac(), real_library(), operands(128), 100 * MHZ, by=by) for by in ("liberty", "opensta")
    )
    assert mine.leakage_w == pytest.approx(other.leakage_w, rel=0.05)
    assert other.switching_w == pytest.approx(mine.switching_w, rel=0.05)
    assert mine.total_w < other.total_w < 2 * mine.total_w


def test_an_opensta_that_counts_twice_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    old = tools.Tool("opensta", ("sta",), "2.0.17")
    monkeypatch.setitem(tools._TOOLS, "opensta", (lambda: old, ""))
    assert not opensta.usable()
    assert estimate_power(mac(W=4, ACC=8), TINY, operands(8), MHZ).method == METHODS["liberty"]
    with pytest.raises(ToolError, match=r"opensta 2\.0\.17 counts energies several times: install version 3"):
        estimate_power(mac(W=4, ACC=8), TINY, operands(8), MHZ, by="opensta")


def test_larger_operands_cost_more_and_frequency_scales() -> None:
    design = mac(W=4, ACC=8)
    small, large = (estimate_power(design, TINY, operands(scale), MHZ, by="liberty") for scale in (2, 8))
    assert small.switching_w < large.switching_w
    assert 0 < small.activity < large.activity < 1
    fast = estimate_power(design, TINY, operands(8), 3 * MHZ, by="liberty")
    assert fast.total_w - fast.leakage_w == pytest.approx(3 * (large.total_w - large.leakage_w))


def test_what_has_no_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="mem of fifo is an SRAM"):
        estimate_power(fifo(AW=8), TINY, {"push": [0, 1]}, MHZ)
    with pytest.raises(SettingError, match="toggles need two or more"):
        estimate_power(fifo(), TINY, {"push": [0]}, MHZ)
    with pytest.raises(SettingError, match="choose auto, liberty or opensta"):
        estimate_power(fifo(), TINY, {"push": [0, 1]}, MHZ, by="guess")
    with pytest.raises(SettingError, match="frequency_hz is 0"):
        estimate_power(fifo(), TINY, {"push": [0, 1]}, 0)


def test_a_mac_in_a_real_process() -> None:
    power = estimate_power(mac(), real_library(), operands(128), 100 * MHZ)
    assert 1e-4 < power.total_w < 5e-3
