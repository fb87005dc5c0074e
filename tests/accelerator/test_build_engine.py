"""Engines as folders: the instance is the preset's, and its bench passes, and fails where it should."""

from pathlib import Path

import pytest
import yaml

from gossamer.accelerator.build import BENCH, TOP, build_job
from gossamer.core.errors import OutputError, SettingError
from gossamer.eda import tools
from gossamer.eda.design import Design
from gossamer.eda.simulate import Simulation, Simulator, simulate

ENGINE = {"rows": 4, "columns": 8, "depth": 4, "lanes": 2, "norm_rows": 2, "bus_bytes": 8, "instructions": 512}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(ENGINE))
    return str(path)


def bench(folder: Path, simulator: Simulator = "verilator") -> Simulation:
    files = [path for name in ("rtl", "bench") for path in sorted((folder / name).iterdir())]
    return simulate(Design(files, "gs_bench"), simulator, optimise=0)


def test_a_folder_has_what_a_designer_needs(config: str, tmp_path: Path) -> None:
    out = tmp_path / "chip"
    result = build_job(config, out, clock_mhz=250)
    assert {
        f"rtl/{TOP}.v",
        "rtl/gs_top.v",
        "rtl/gs_isa.vh",
        f"bench/{BENCH.name}",
        "constraints.sdc",
        "README.md",
    } <= set(result["files"])
    instance = (out / "rtl" / f"{TOP}.v").read_text()
    assert ".ROWS(4)" in instance
    assert "input  wire [63:0] m_axi_rdata_i" in instance
    assert "-period 4.000" in (out / "constraints.sdc").read_text()
    assert "128 8-bit multipliers" in (out / "README.md").read_text()
    build_job(config, out)  # an older one is replaced


def test_places_and_engines_that_do_not_do(config: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("dear")
    with pytest.raises(OutputError):
        build_job(config, taken)
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({**ENGINE, "bank_lines": 16, "banks": 4}))
    with pytest.raises(SettingError, match="find no room in the SRAM memory"):
        build_job(str(small), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.skipif(not tools.available("verilator"), reason="needs Verilator")
def test_the_bench_passes_and_sees_a_wrong_byte(config: str, tmp_path: Path) -> None:
    out = tmp_path / "chip"
    build_job(config, out)
    assert bench(out).lines[-1].startswith("PASS")
    expected = out / "bench" / "expected.hex"
    lines = expected.read_text().splitlines()
    lines[-1] = f"{int(lines[-1], 16) ^ 1:016x}"
    expected.write_text("\n".join(lines) + "\n")
    assert bench(out).lines[-1].startswith("FAIL: 1 words")


@pytest.mark.slow
@pytest.mark.skipif(not tools.available("icarus"), reason="needs Icarus: make tools")
def test_the_bench_passes_where_what_was_never_written_is_unknown(config: str, tmp_path: Path) -> None:
    build_job(config, tmp_path / "chip")
    assert bench(tmp_path / "chip", "icarus").lines[-1].startswith("PASS")
