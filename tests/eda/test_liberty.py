"""Liberty files: what they say is read in SI units; what is not one is refused at its first wrong line."""

import gzip
import os
from pathlib import Path

import pytest
from rtl_files import RTL

from gossamer.eda.liberty import LibertyError, read_liberty

TINY = RTL / "tiny.lib"


def test_cells_are_read_in_si_units() -> None:
    library = read_liberty(TINY)
    assert (library.name, library.voltage, set(library.cells)) == ("tiny", 1.5, {"INV", "BUF", "NAND2", "NOR2", "DFF"})
    nand, flop = library.cells["NAND2"], library.cells["DFF"]
    assert (nand.area, nand.leakage) == (4, pytest.approx(40e-12))
    assert nand.inputs == {"A": pytest.approx(2e-15), "B": pytest.approx(2e-15)}
    assert nand.energy == pytest.approx((0.002 + 0.003) / 2 * 1e-12)  # second of four values, rise and fall
    assert (nand.sequential, nand.delay, nand.clock_energy) == (False, 0, 0)
    assert flop.sequential
    assert flop.clock_energy == pytest.approx(5.5e-15)
    assert flop.delay == pytest.approx((0.25 + 0.07) * 1e-9)
    assert flop.outputs == ("Q",)


def test_a_packed_file_is_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "tiny.lib.gz"
    packed.write_bytes(gzip.compress(TINY.read_bytes()))
    assert read_liberty(packed) == read_liberty(TINY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("module top();\nendmodule\n", r"x\.lib:1: not liberty: expected library \(name\) \{, found 'module top\(\);'"),
        ("/* a\n b */\n\nhello: world\n", r"x\.lib:4: not liberty: .* found 'hello: world'"),
        ("library (x) {\n  area : 1;\n  = 5;\n}\n", r"x\.lib:3: not liberty: expected a statement, found '= 5;'"),
        ("library (x) {\n  cell (A) {\n", r"x\.lib:3: not liberty: .* found the end of the file in cell"),
        ("library (x) {\n}\n}\n", r"x\.lib:3: not liberty: expected a statement, found '\}'"),
        ("library (x) {\n  nom_voltage : 1;\n}\n", r"x\.lib: library x has no cells"),
        ("library (x) {\n  cell (A) { area : 1; }\n}\n", r"x\.lib: library x has no voltage"),
        ("", r"x\.lib:1: not liberty"),
    ],
)
def test_what_is_not_liberty_is_refused_at_its_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.lib"
    file.write_text(content)
    with pytest.raises(LibertyError, match=message):
        read_liberty(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LibertyError, match=r"cannot read the liberty file .*none\.lib"):
        read_liberty(tmp_path / "none.lib")
    (tmp_path / "cut.lib.gz").write_bytes(gzip.compress(TINY.read_bytes())[:200])
    with pytest.raises(LibertyError, match=r"cannot read the liberty file .*cut\.lib\.gz"):
        read_liberty(tmp_path / "cut.lib.gz")


def real_library() -> Path:
    """IHP's SG13G2 in the data folder, or a skip."""
    file = Path(os.environ.get("GOSSAMER_DATA", "")) / "liberty" / "sg13g2_stdcell_typ_1p20V_25C.lib"
    if "GOSSAMER_DATA" not in os.environ or not file.is_file():
        pytest.skip("GOSSAMER_DATA does not name a folder with liberty/sg13g2_stdcell_typ_1p20V_25C.lib")
    return file


def test_a_library_of_a_foundry() -> None:
    library = read_liberty(real_library())
    assert (len(library.cells), library.voltage) == (84, 1.2)
    assert library.cells["sg13g2_nand2_1"].area == 7.2576
    assert 1e-15 < library.cells["sg13g2_nand2_1"].energy < 5e-15
    assert 0.1e-9 < library.cells["sg13g2_dfrbpq_1"].delay < 0.6e-9
