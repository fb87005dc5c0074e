"""Proofs: equals are proved, the bug is found with the inputs that show it, and too hard a question is given up."""

from pathlib import Path

import pytest
from rtl_files import fifo, mac, written

from gossamer.core.errors import SettingError
from gossamer.eda.design import Design
from gossamer.eda.prove import prove
from gossamer.eda.tools import ToolError

COUNTER = """module top(input clk, input up, output reg [3:0] n);
  initial n = 0;
  always @(posedge clk) begin
    if (up && n < 10) n <= n + 1;
    assert (n <= {limit});
  end
endmodule
"""


def adder(folder: Path, result: str) -> Design:
    folder.mkdir(exist_ok=True)
    return written(
        folder, f"module top(input [7:0] a, input [7:0] b, output [8:0] y);\n  assign y = {result};\nendmodule\n"
    )


def test_two_adders_are_proved_equal_and_one_wrong_pair_of_256_by_256_is_found(tmp_path: Path) -> None:
    plus = adder(tmp_path / "plus", "a + b")
    minus = adder(tmp_path / "minus", "({1'b0, a} - ~{1'b0, b}) - 9'd1")
    assert prove(minus, plus).outcome == "proved"
    wrong = prove(adder(tmp_path / "wrong", "a == 200 && b == 17 ? 0 : a + b"), plus)
    assert wrong.outcome == "counterexample"
    (cycle,) = wrong.counterexample
    assert cycle == {"in_a": 200, "in_b": 17, "gold_y": 217, "gate_y": 0, "trigger": 1}


def test_a_mac_equals_itself_and_the_unsigned_product_is_found() -> None:
    assert prove(mac(), mac(), reset="rst").outcome == "proved"
    found = prove(mac(W=5, ACC=12, BUG=1), mac(W=5, ACC=12), reset="rst")
    assert found.outcome == "counterexample"
    shown, cause = found.counterexample[-1], found.counterexample[-2]
    assert shown["gate_acc"] != shown["gold_acc"]
    assert (cause["in_a"] | cause["in_b"]) & 16  # a negative operand, in the cycle before


def test_a_queue_that_never_says_full_is_found_at_its_fifth_word() -> None:
    found = prove(fifo(BUG=1), fifo(), reset="rst", start="zero")
    assert found.outcome == "counterexample"
    assert found.counterexample[-1]["gold_full"] != found.counterexample[-1]["gate_full"]
    assert len(found.counterexample) == 6  # reset, four words, and the difference
    assert prove(fifo(), fifo(), reset="rst", start="zero").outcome == "proved"


def test_assertions_hold_or_break_at_a_cycle(tmp_path: Path) -> None:
    assert prove(written(tmp_path, COUNTER.format(limit=10))).outcome == "proved"
    broken = prove(written(tmp_path, COUNTER.format(limit=9)))
    assert (broken.outcome, len(broken.counterexample)) == ("counterexample", 12)
    short = prove(written(tmp_path, COUNTER.format(limit=9)), steps=5)
    assert (short.outcome, short.steps) == ("gave up", 4)


def test_a_hard_question_is_given_up_in_time(tmp_path: Path) -> None:
    ports = "module top(input [15:0] a, input [15:0] b, output [31:0] y);\n"
    straight = written(tmp_path, ports + "  assign y = a * b;\nendmodule\n")
    (tmp_path / "other").mkdir()
    around = written(tmp_path / "other", ports + "  assign y = (a << 16) - a * (17'h10000 - b);\nendmodule\n")
    found = prove(around, straight, seconds=2)
    assert found.outcome == "gave up"
    assert str(found).startswith("gave up after ")


def test_bad_questions_are_refused(tmp_path: Path) -> None:
    plus = adder(tmp_path / "plus", "a + b")
    with pytest.raises(SettingError, match="top has no assert to prove"):
        prove(plus)
    with pytest.raises(SettingError, match="top has no registers for rst to reset"):
        prove(plus, plus, reset="rst")
    with pytest.raises(SettingError, match="give any or zero"):
        prove(plus, plus, steps=0)
    with pytest.raises(ToolError, match="No matching port in gate module was found for"):
        prove(plus, mac())
