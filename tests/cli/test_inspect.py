"""`gossamer inspect`."""

import json
from pathlib import Path

import pytest


def test_fixed_keys_and_sums(gossamer, lm: Path) -> None:
    ended = gossamer("inspect", lm, "--json")
    assert (ended.code, ended.err) == (0, "")
    result = ended.json
    parts = result["modalities"]
    assert sum(part["parameters"] for part in parts.values()) == result["parameters"]
    assert sum(part["weight_bytes"] for part in parts.values()) == result["weight_bytes"]
    assert parts["language"]["blocks"] == 2
    assert result["weight_bytes"] == 4 * result["parameters"]


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"),
    [("llama-3-8b", 8_030_261_248, 32), ("mistral-7b-v0.1", 7_241_732_096, 32), ("qwen3-8b", 8_190_735_360, 36)],
)
def test_a_config_alone_is_enough(gossamer, name: str, parameters: int, blocks: int) -> None:
    result = gossamer("inspect", name, "--json").json
    assert result["parameters"] == parameters
    assert result["modalities"]["language"]["blocks"] == blocks


def test_people_get_a_table_with_units(gossamer, lm: Path) -> None:
    ended = gossamer("inspect", lm)
    assert ended.code == 0
    for word in ("language", "total", "kB", "MACs per token"):
        assert word in ended.out
    assert "\x1b" not in ended.out
    assert all(len(line) <= 140 for line in ended.out.splitlines())


def test_clean_streams_in_a_process_of_its_own(program, lm: Path) -> None:
    ended = program("inspect", str(lm), "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["family"] == "llama"
