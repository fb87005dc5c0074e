"""Proofs, for all inputs: tables and rounding of the RTL against definitions written another way."""

from pathlib import Path

import pytest

from gossamer import accelerator
from gossamer.eda.design import Design
from gossamer.eda.prove import prove

RTL = Path(next(iter(accelerator.__path__))) / "rtl"
CHECKS = Path(__file__).parent / "proofs"


@pytest.mark.parametrize(("width", "bits"), [(34, 16), (37, 16), (49, 24)])
def test_rounding_shifts_are_the_definition(width: int, bits: int) -> None:
    sizes = {"IN": width, "OUT": bits}
    gold = Design([CHECKS / "shift_check.v"], "shift_check", sizes)
    found = prove(Design([RTL / "gs_shift.v"], "gs_shift", sizes), gold, start="zero", steps=4, seconds=100)
    assert found.outcome == "proved", found


def test_every_seed_is_the_nearest_number() -> None:
    found = prove(Design([RTL / "gs_root_seeds.v", CHECKS / "seeds_check.v"], "seeds_check"), seconds=100)
    assert found.outcome == "proved", found


def test_every_exponential_is_the_nearest_number() -> None:
    gold = Design([CHECKS / "exponential_check.v"], "exponential_check")
    found = prove(Design([RTL / "gs_exponential.v"], "gs_exponential"), gold, seconds=100)
    assert found.outcome == "proved", found


def test_a_wrong_seed_is_found(tmp_path: Path) -> None:
    text = (RTL / "gs_root_seeds.v").read_text(encoding="utf-8")
    wrong = tmp_path / "gs_root_seeds.v"
    wrong.write_text(text.replace("8'd100: seed_o = 16'd", "8'd100: seed_o = 16'd1"), encoding="utf-8")
    found = prove(Design([wrong, CHECKS / "seeds_check.v"], "seeds_check"), seconds=100)
    assert found.outcome == "counterexample"
    assert found.counterexample[0]["index_i"] == 100
