"""A whole engine as gates of a made-up library: its units, its memories, its slowest path."""

from pathlib import Path

import pytest

from gossamer.accelerator.area import memory_bits
from gossamer.accelerator.synthesis import UNITS, synthesize_job
from gossamer.core.files import write_text
from gossamer.dataflow.engine import IntegerEngine
from gossamer.eda import tools

pytestmark = pytest.mark.skipif(not tools.available("yosys"), reason="Yosys is missing")

LIBERTY = Path(__file__).parents[1] / "eda" / "rtl" / "tiny.lib"
LEAST = IntegerEngine(
    rows=4, columns=4, depth=4, lanes=1, norm_rows=2, banks=4, bank_lines=256, bus_bytes=4, four_bit=False,
    parameters=256, groups=16, chunks=256, instructions=64, tables=2,
)  # fmt: skip


@pytest.mark.slow
def test_a_whole_engine_is_synthesised(tmp_path: Path) -> None:
    config = tmp_path / "least.yaml"
    write_text(config, LEAST.model_dump_json())
    result = synthesize_job(str(config), LIBERTY)
    assert set(result["units"]) == set(UNITS)
    cells = result["modules"]["gs_cell"]
    assert cells["instances"] == LEAST.rows * LEAST.columns
    assert result["units"]["gs_gemm"]["area_um2"] > cells["instances"] * cells["area_um2"]
    assert result["logic_area_um2"] > sum(unit["area_um2"] for unit in result["units"].values())
    assert result["sram_bits"] == sum(memory_bits(LEAST).values())
    power = result["power"]["estimated"]
    assert power["frequency_mhz"] == pytest.approx(1e3 / result["critical_path_ns"])
    assert power["array_mw"] == pytest.approx(sum(power["array_parts_mw"].values()))
    macs = LEAST.rows * LEAST.columns * LEAST.depth
    assert power["pj_per_mac"] * macs * power["frequency_mhz"] * 1e-3 == pytest.approx(power["array_mw"])
    assert result["critical_path_ns"] > max(module["path_ns"] or 0 for module in result["modules"].values()) > 0
