"""Simulation: benches, models driven from Python, and drivers of one's own. Built once, then in the cache."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from rtl_files import RTL, fifo, mac, written

from gossamer.core.errors import SettingError
from gossamer.eda import compiling, tools
from gossamer.eda.compiling import build
from gossamer.eda.design import Design
from gossamer.eda.model import Model, as_signed
from gossamer.eda.simulate import simulate
from gossamer.eda.tools import ToolError


def bench(**parameters: int | str) -> Design:
    return Design([RTL / "fifo.v", RTL / "fifo_tb.v"], "fifo_tb", parameters)


def quick(design: Design, clock: str | None = "clk", seed: int = 0) -> Model:
    """The model, soon compiled rather than fast."""
    return Model(design, clock, seed, optimise=0)


SIMULATORS = [
    "verilator",
    pytest.param("icarus", marks=pytest.mark.skipif(not tools.available("icarus"), reason="icarus is not installed")),
]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_bench_passes_and_its_lines_are_told(simulator: str) -> None:
    ended = simulate(bench(AW=3), simulator, optimise=0)
    assert ended.passed
    assert ended.lines == ("0 of 8 words are wrong",)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_bench_finds_the_bug(simulator: str) -> None:
    ended = simulate(bench(BUG=1), simulator, optimise=0)
    assert not ended.passed
    assert "word 0 is 4" in ended.lines
    assert any("the queue lost words" in line for line in ended.lines)


def test_a_bench_that_never_finishes_is_no_pass(tmp_path: Path) -> None:
    idle = written(tmp_path, 'module top;\n  initial #5 $display("idle");\nendmodule\n')
    ended = simulate(idle, optimise=0)
    assert not ended.passed
    assert ended.lines[0] == "idle"
    (tmp_path / "on").mkdir()
    endless = written(tmp_path / "on", "module top;\n  reg x;\n  initial x = 0;\n  always #1 x = ~x;\nendmodule\n")
    with pytest.raises(ToolError, match=r"stopped after 0\.3 s"):
        simulate(endless, seconds=0.3, optimise=0)


def test_a_bench_is_given_plusargs_and_files(tmp_path: Path) -> None:
    (tmp_path / "table.hex").write_text("0a\n14\n1e\n")
    text = "module top;\n  reg [7:0] table_ [0:2];\n  integer n;\n  initial begin\n"
    text += '    $readmemh("table.hex", table_);\n    if (!$value$plusargs("n=%d", n)) n = 0;\n'
    text += '    $display("%0d", table_[n]);\n    $finish;\n  end\nendmodule\n'
    (tmp_path / "top.v").write_text(text)
    design = Design([tmp_path / "top.v", tmp_path / "table.hex"], "top")
    assert simulate(design, arguments=["+n=2"], optimise=0).lines == ("30",)


def accumulate(design: Design, width: int, bits: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """What the RTL says, and what NumPy says, of random operands."""
    random = np.random.default_rng(0)
    low, high = -(1 << (width - 1)), 1 << (width - 1)
    a, b = random.integers(low, high, (2, rows))
    en, clear = random.integers(0, 2, rows), random.integers(0, 50, rows) == 0
    model = quick(design, seed=1)
    model.set("rst", 1)
    model.clock()
    columns = {"rst": np.zeros(rows, np.uint8), "en": en, "clear": clear, "a": a, "b": b}
    heard = as_signed(model.run(columns, ["acc"])["acc"], bits)
    total, expected, wrap = 0, [], 1 << (bits - 1)
    for product, enabled, cleared in zip((a * b).tolist(), en.tolist(), clear.tolist(), strict=True):
        expected.append((total + wrap) % (2 * wrap) - wrap)
        total = (product if cleared else total + product) if enabled else total
    return heard, np.array(expected)


@pytest.mark.parametrize(("width", "bits"), [(8, 24), (5, 12), (20, 64)])
def test_many_vectors_in_one_call_equal_numpy_at_each_width(width: int, bits: int) -> None:
    heard, expected = accumulate(mac(W=width, ACC=bits), width, bits, 100_000)
    assert (heard == expected).all()
    assert len(np.unique(heard)) > 1000


def test_many_vectors_find_the_unsigned_product() -> None:
    heard, expected = accumulate(mac(BUG=1), 8, 24, 1000)
    assert (heard != expected).any()


def test_a_queue_driven_step_by_step() -> None:
    model = quick(fifo(W=5, AW=1), seed=7)
    model.set("rst", 1)
    model.clock()
    model.set("rst", 0)
    model.set("push", 1)
    for word in (3, 30, 31):
        model.set("din", word)
        model.clock()
    model.set("push", 0)
    assert (model.get("count"), model.get("full"), model.get("dout")) == (2, 1, 3)
    model.set("pop", 1)
    model.clock()
    assert (model.get("dout"), model.get("dout", signed=True)) == (30, -2)
    model.clock(5)
    assert model.get("empty") == 1


def test_wide_ports_are_words(tmp_path: Path) -> None:
    text = "module top #(parameter W = 70) (input [W-1:0] a, input low, output [W-1:0] y, output [63:0] z);\n"
    model = quick(written(tmp_path, text + "  assign y = ~a ^ low;\n  assign z = a[63:0];\nendmodule\n"), clock=None)
    words = np.array([[1, 2, 3], [0, 0, 0xFFFFFFFF]], np.uint32)
    out = model.run({"a": words, "low": [0, 1]}, ["y", "z"])
    assert out["y"].tolist() == [[0xFFFFFFFE, 0xFFFFFFFD, 0x3C], [0xFFFFFFFE, 0xFFFFFFFF, 0]]
    assert out["z"].tolist() == [1 | 2 << 32, 0]
    model.set("a", 5 << 66)
    model.set("low", 0)
    model.eval()
    assert model.get("y") == (1 << 70) - 1 - (5 << 66)


def test_a_model_finds_its_files_and_leaves_the_working_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table.hex").write_text("0a\n14\n1e\n28\n")
    text = "module top(input [1:0] a, output [7:0] y);\n  reg [7:0] table_ [0:3];\n"
    (tmp_path / "top.v").write_text(
        text + '  initial $readmemh("table.hex", table_);\n  assign y = table_[a];\nendmodule\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = quick(Design([tmp_path / "top.v", tmp_path / "table.hex"], "top"), clock=None)
    assert model.run({"a": np.arange(4)}, ["y"])["y"].tolist() == [10, 20, 30, 40]
    assert Path.cwd() == tmp_path / "elsewhere"


def test_a_design_that_stops_is_an_error_not_the_end_of_python(tmp_path: Path) -> None:
    text = 'module top(input clk, input a);\n  always @(posedge clk) if (a) $fatal(1, "no");\nendmodule\n'
    model = quick(written(tmp_path, text))
    model.clock()
    model.set("a", 1)
    with pytest.raises(ToolError, match=r"top stopped at top\.v:2: "):
        model.clock()
    (tmp_path / "loop").mkdir()
    loop = written(tmp_path / "loop", "module top(input a, output y);\n  assign y = ~(y & a);\nendmodule\n")
    model = quick(loop, clock=None)
    model.set("a", 1)
    with pytest.raises(ToolError, match="converge"):
        model.eval()


def test_columns_and_values_that_do_not_fit_are_refused() -> None:
    model = quick(fifo(W=5, AW=1))
    for inputs, message in (
        ({"din": [32]}, "din has 5 bits, which 32 to 32 do not fit"),
        ({"din": [-17]}, "do not fit"),
        ({"din": [0.5]}, "whole numbers"),
        ({"din": [1, 2], "push": [1]}, r"lengths \[1, 2\]"),
        ({"dout": [1]}, "no input 'dout': it has clk, rst"),
    ):
        with pytest.raises(SettingError, match=message):
            model.run(inputs, ["dout"])
    with pytest.raises(SettingError, match="no port 'nothing'"):
        model.get("nothing")
    with pytest.raises(SettingError, match="33 does not fit into the 5 bits of din"):
        model.set("din", 33)
    with pytest.raises(SettingError, match="no clock input 'ck'"):
        quick(fifo(W=5, AW=1), clock="ck")


def test_a_driver_of_ones_own_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = compiling._runtime()
    monkeypatch.setattr(compiling, "_runtime", lambda: runtime)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = tools.run
    ran: list[str] = []  # the programs that are run
    monkeypatch.setattr(tools, "run", lambda tool, *rest: (ran.append(tool.name), run(tool, *rest))[1])
    design = Design([RTL / "fifo.v", RTL / "steps.h"], "fifo", {"AW": 3})
    program = build(design, RTL / "driver.cpp", optimise=0)
    assert subprocess.run([program], capture_output=True, text=True, check=False).stdout == "8\n"
    assert "verilator" in ran
    ran.clear()
    stamp = program.stat().st_mtime_ns
    assert build(design, RTL / "driver.cpp", optimise=0) == program
    assert (ran, program.stat().st_mtime_ns) == ([], stamp)
    other = build(Design(design.sources, "fifo", {"AW": 4}), RTL / "driver.cpp", optimise=0)
    assert subprocess.run([other], check=False).returncode == 16
    assert ran.count("verilator") == 1


def test_what_does_not_compile_is_one_line_with_its_place(tmp_path: Path) -> None:
    broken = written(tmp_path, "module top(input a, output y);\n  assign y = a +;\nendmodule\n")
    with pytest.raises(ToolError) as error:
        quick(broken)
    assert str(error.value).startswith(f"verilator: {tmp_path / 'top.v'}:2: syntax error")
    assert "\n" not in str(error.value)
    driver = tmp_path / "driver.cpp"
    driver.write_text("int main() {\n  return nothing;\n}\n")
    with pytest.raises(ToolError, match=rf"compiler: {driver}:2: (.)nothing(.) was not declared"):
        build(mac(), driver)
    with pytest.raises(SettingError, match="there is no driver"):
        build(mac(), tmp_path / "none.cpp")


def test_ports_that_python_cannot_drive_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="port both of the top module is an inout"):
        quick(written(tmp_path, "module top(inout both);\nendmodule\n"), clock=None)


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolError, match=r"compiler is not installed: .*g\+\+"):
        quick(mac())
