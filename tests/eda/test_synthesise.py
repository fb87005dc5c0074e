"""Synthesis: areas add up over the hierarchy, memories are told apart, and what cannot be mapped is refused."""

from pathlib import Path

import pytest
from rtl_files import RTL, fifo, mac, written
from test_liberty import TINY, real_library

from gossamer.core.errors import SettingError
from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.liberty import LibertyError, read_liberty
from gossamer.eda.synthesise import SramUse, synthesise
from gossamer.eda.tools import ToolError


def pair(**parameters: int | str) -> Design:
    return Design([RTL / "pair.v", RTL / "fifo.v", RTL / "mac.v"], "pair", parameters)


def test_each_module_once_and_all_instances_counted() -> None:
    found = synthesise(pair(), TINY)
    assert {name: module.instances for name, module in found.modules.items()} == {
        "pair": 1,
        "fifo": 1,
        "fifo#2": 1,
        "mac": 2,
    }
    cells = read_liberty(TINY).cells
    assert found.area_um2 == pytest.approx(sum(cells[name].area * count for name, count in found.cells.items()))
    assert found.area_um2 == pytest.approx(found.area_within("pair"))
    assert found.area_within("mac") == found.modules["mac"].area_um2
    # 2 x 24 accumulator bits; queues of 4 and 8 words of 8 bits with their pointers
    assert found.cells["DFF"] == 48 + (32 + 2 * 3) + (64 + 2 * 4)
    assert found.sequential_share == pytest.approx(found.cells["DFF"] * 20 / found.area_um2)


def test_a_large_memory_is_listed_and_never_made_of_flops() -> None:
    assert synthesise(pair(), TINY).srams == (SramUse("pair", "store", 16, 128, 1, 1, True, 1),)
    flops, left_out = synthesise(fifo(AW=3), TINY, flop_bits=64), synthesise(fifo(AW=3), TINY, flop_bits=63)
    assert flops.srams == ()
    assert flops.cells["DFF"] == 64 + 2 * 4
    assert (left_out.srams[0].bits, left_out.cells["DFF"]) == (64, 2 * 4)


def test_memories_of_many_instances_are_all_counted(tmp_path: Path) -> None:
    text = "module bank(input clk, input we, input [5:0] a, input [31:0] d, output [31:0] q);\n"
    text += "  reg [31:0] m [0:63];\n  always @(posedge clk) if (we) m[a] <= d;\n  assign q = m[a];\nendmodule\n"
    text += "module top(input clk, input [2:0] we, input [5:0] a, input [31:0] d, output [95:0] q);\n  genvar i;\n"
    text += "  generate for (i = 0; i < 3; i = i + 1) begin : g\n    bank b(clk, we[i], a, d, q[32*i +: 32]);\n"
    text += "  end endgenerate\nendmodule\n"
    (use,) = synthesise(written(tmp_path, text), TINY).srams
    assert use == SramUse("bank", "m", 32, 64, 1, 1, False, 3)
    assert use.bits == 3 * 2048


def test_a_table_that_is_only_read_is_logic(tmp_path: Path) -> None:
    text = "module top(input [7:0] a, output reg [7:0] y);\n  reg [7:0] t [0:255];\n  integer i;\n"
    text += "  initial for (i = 0; i < 256; i = i + 1) t[i] = i * i;\n  always @* y = t[a];\nendmodule\n"
    found = synthesise(written(tmp_path, text), TINY)
    assert found.srams == ()
    assert found.area_um2 > 100
    assert "DFF" not in found.cells


def test_the_critical_path_grows_with_the_width_and_spans_modules_when_flat() -> None:
    narrow, wide = synthesise(mac(W=3, ACC=8), TINY), synthesise(mac(W=8, ACC=24), TINY)
    assert 0.3 < narrow.critical_path_ns < wide.critical_path_ns
    assert wide.slowest is not None
    path = wide.slowest.path
    assert path is not None
    assert len(path.cells) > 10
    assert set(path.cells) <= {"INV", "BUF", "NAND2", "NOR2"}
    assert wide.register_ns == pytest.approx(0.32)
    flat = synthesise(pair(), TINY, flatten=True)
    assert list(flat.modules) == ["pair"]
    assert flat.cells["DFF"] == synthesise(pair(), TINY).cells["DFF"]


def test_the_result_is_kept_by_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = synthesise(fifo(), TINY)
    monkeypatch.setattr(tools, "run", None)
    assert synthesise(fifo(), TINY) == first
    assert first.netlist.read_text().count("DFF ") == first.cells["DFF"]
    with pytest.raises(TypeError):
        synthesise(fifo(AW=3), TINY)


def test_what_cannot_be_synthesised_is_refused_in_one_line(tmp_path: Path) -> None:
    latch = written(tmp_path, "module top(input e, input d, output reg q);\n  always @* if (e) q = d;\nendmodule\n")
    with pytest.raises(ToolError, match="D latches are not supported"):
        synthesise(latch, TINY)
    with pytest.raises(LibertyError, match=r"fifo\.v:2: not liberty"):
        synthesise(fifo(), RTL / "fifo.v")
    with pytest.raises(SettingError, match="goal is 'power'"):
        synthesise(fifo(), TINY, goal="power")  # type: ignore[arg-type]
    (tmp_path / "wrong").mkdir()
    with pytest.raises(ToolError, match=r"yosys: .*top\.v:2: "):
        synthesise(written(tmp_path / "wrong", "module top(input a);\n  assign = a;\nendmodule\n"), TINY)


def test_a_mac_in_a_real_process() -> None:
    found = synthesise(mac(ACC=32), real_library())
    assert 5000 < found.area_um2 < 9000
    assert 2.0 < found.critical_path_ns < 7.0
    assert found.cells["sg13g2_dfrbpq_1"] == 32
