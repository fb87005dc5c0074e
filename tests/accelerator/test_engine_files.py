"""Engines and technologies as files: what is refused, and in which words."""

from pathlib import Path

import pytest

from gossamer.accelerator.engine_files import ENGINES
from gossamer.core.errors import SettingError
from gossamer.dataflow.technology import TECHNOLOGIES


def test_presets_load() -> None:
    assert {"small", "large"} <= set(ENGINES.names)
    assert ENGINES.load("small").multipliers == 512
    assert ENGINES.load("large").multipliers == 4096


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: 12", "rows is 12; a power of two is needed"),
        ("rows: 128", "rows: Input should be less than or equal to 64"),
        ("rows: eight", "rows: Input should be a valid integer"),
        ("depth: 8\nlanes: 8", "lanes is 8; at most half of depth, 4"),
        ("columns: 4", "depth is 8; a tile of 4 columns must fill whole chunks"),
        ("bus_bytes: 128", "bus_bytes is 128; a line has 64 bytes"),
        ("row: 8", "field row: unknown; fields are rows, columns"),
        ("- 8", "is not a mapping: write some of rows, columns"),
        ("rows: [", "is not valid YAML at line 1: write some of rows"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "engine.yaml"
    path.write_text(text)
    with pytest.raises(SettingError) as error:
        ENGINES.load(str(path))
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"give a YAML file or one of .*small"):
        ENGINES.load(str(tmp_path / "none.yaml"))


def test_technologies(tmp_path: Path) -> None:
    assert TECHNOLOGIES.load("sg13g2").clock_mhz > 0
    path = tmp_path / "mine.yaml"
    path.write_text("clock_mhz: -1\nmac_pj: 1\nsram_pj_per_byte: 1\ndram_pj_per_byte: 1\nsource: mine")
    with pytest.raises(SettingError, match="clock_mhz"):
        TECHNOLOGIES.load(str(path))
