"""Device descriptions."""

import subprocess
import sys
from pathlib import Path

import pytest

from gossamer.core.device import DEVICES
from gossamer.core.errors import DeviceError

GOOD = """
description: a board
source: its data sheet
memory_bytes: 4_000_000_000
bandwidth_bytes_per_s: 10.0e+9
operations_per_s: {float32: 1.0e+11, int8: 4.0e+11}
disk_bytes_per_s: 1.0e+8
"""


@pytest.mark.parametrize("name", DEVICES.names)
def test_presets_are_whole(name: str) -> None:
    device = DEVICES.load(name)
    assert device.name == name
    assert device.rate("float32") <= device.rate("int8")
    assert device.source


def test_the_named_presets_ship() -> None:
    assert {"laptop-cpu", "server-cpu", "jetson-orin-nano", "rtx-3050-6gb"} <= set(DEVICES.names)


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(GOOD)
    device = DEVICES.load(str(path))
    assert device.name == "board"
    assert device.memory_bytes == 4_000_000_000
    assert device.rate("int4") == device.rate("int8") == 4e11
    assert device.rate("float16") == 1e11


def test_a_missing_device_lists_the_presets() -> None:
    with pytest.raises(DeviceError, match=r"device abacus does not exist: .*laptop-cpu"):
        DEVICES.load("abacus")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "is not a mapping"),
        ("a: [", "is not valid YAML"),
        (GOOD.replace("4_000_000_000", "-1"), "field memory_bytes"),
        (GOOD + "colour: red\n", "field colour"),
        (GOOD.replace("int8:", "int7:"), "field operations_per_s"),
        ("description: x", "field source"),
    ],
)
def test_malformed_files_name_the_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=said) as caught:
        DEVICES.load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_core_does_not_import_torch() -> None:
    code = "import sys, gossamer.core.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
