"""The area model: sums of its terms, memories by the bit, and what grows with what."""

from pathlib import Path

import pytest

from gossamer.accelerator.area import AREAS, AreaModel, area_um2, memory_bits, units_um2
from gossamer.accelerator.engine_files import ENGINES
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine

SMALL = ENGINES.load("small")


def test_terms_are_products_of_sizes() -> None:
    engine = IntegerEngine(rows=4, columns=8, depth=8, lanes=2, norm_rows=4, four_bit=True)
    model = AreaModel(units={"a": {"rows*columns*split": 10.0, "one": 5.0}, "b": {"line_bytes*levels": 2.0}}, source="")
    assert units_um2(engine, model) == {"a": 4 * 8 * 10 + 5, "b": 2 * 64 * 3}
    whole = engine.model_copy(update={"four_bit": False})
    assert units_um2(whole, model)["a"] == 5


def test_memories_by_the_bit() -> None:
    bits = memory_bits(SMALL)
    assert bits["unified memory"] == 8 * SMALL.sram_bytes
    assert bits["table memories"] == 8 * 4 * SMALL.tables * 256 * 8
    assert memory_bits(SMALL.model_copy(update={"four_bit": False}))["group memory"] == 0


def test_memories_are_those_that_synthesis_finds() -> None:
    """Bits that Yosys lists of `gs_top` with these numbers."""
    engine = IntegerEngine(
        rows=4, columns=4, depth=4, lanes=2, norm_rows=4, banks=4, bank_lines=1024, bus_bytes=4, parameters=1024,
        groups=1024, tables=4, chunks=256, instructions=256,
    )  # fmt: skip
    assert memory_bits(engine) == {
        "unified memory": 4 * 128 * 1024, "parameter memory": 128 * 512, "group memory": 32 * 1024,
        "table memories": 8 * 32 * 256, "octave memory": 40 * (256 + 32), "instruction memory": 512 * 256,
    }  # fmt: skip


def test_the_process_that_ships() -> None:
    model = AREAS.load("sg13g2")
    small, large = area_um2(SMALL, model), area_um2(ENGINES.load("large"), model)
    assert small.keys() == large.keys()
    assert all(0 < small[name] <= large[name] for name in small)
    cells = 64 * 64_200  # gs_cell of depth 8, split, synthesised
    assert small["array"] == pytest.approx(cells, rel=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("units: {a: {wings: 1}}\nsource: x", "wings"),
        ("units: {}", "source"),
        ("[]", "mapping"),
        (None, "area model .* does not exist"),
    ],
)
def test_what_is_no_area_model(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "areas.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=said):
        AREAS.load(str(path))
