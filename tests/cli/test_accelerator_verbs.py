"""`gossamer accelerator …` as programs: what they print, and what they refuse in one sentence."""

from pathlib import Path

import pytest
import yaml
from tests.accelerator.program.random_stacks import Maker, llama

from gossamer.accelerator.integer_files import save_integer
from gossamer.accelerator.integer_model import IntegerModel
from gossamer.accelerator.wiring import Wiring

ENGINE = {"rows": 4, "columns": 8, "depth": 4, "lanes": 2, "norm_rows": 2, "bus_bytes": 8, "instructions": 512}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "engine.yaml"
    path.write_text(yaml.safe_dump(ENGINE))
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An integer model with random numbers and the tokens of tiny-lm."""
    words = 4096
    stack = llama(Maker(1), 20, 4, 2, 8, 28, words)
    model = IntegerModel({"language": stack}, Wiring(text="language"), "tiny-lm", "none")
    save_integer(model, tmp_path / "ints")
    return tmp_path / "ints"


def test_simulate_on_the_golden_machine(gossamer, program: Path, config: Path) -> None:
    done = gossamer(
        "accelerator",
        "simulate",
        program,
        "--config",
        config,
        "--golden",
        "--prompt",
        "The cat",
        "--tokens",
        2,
        "--json",
    )
    assert done.code == 0, done.err
    result = done.json
    assert (result["mismatches"], result["simulated"]) == (0, "golden machine")
    assert result["cycles"] == result["model_cycles"] > 0
    assert 0 < result["utilisation"] < 1
    assert result["phases"]["decode"]["runs"] == len(result["tokens"]) == 2


def test_an_engine_that_was_looked_for_runs_the_model(gossamer, program: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    values = ("rows=4,8", "columns=8", "depth=4", "lanes=2", "bits=8", "memory=64KiB,128KiB")
    sweep = [word for value in values for word in ("--sweep", value)]
    found = gossamer("accelerator", "explore", program, "--sequence", 8, *sweep, "--out", out, "--json").json
    assert len(found["points"]) + sum(found["skipped"].values()) == found["tried"] == 4
    engine = out / "engine.yaml"
    assert yaml.safe_load(engine.read_text()) == found["chosen"]["engine"]
    asked = ("--golden", "--prompt", "The cat", "--tokens", 1, "--json")
    result = gossamer("accelerator", "simulate", program, "--config", engine, *asked).json
    assert result["mismatches"] == 0
    assert result["cycles"] == result["model_cycles"] > 0


def test_what_simulate_refuses(gossamer, program: Path, config: Path, tmp_path: Path) -> None:
    run = ("accelerator", "simulate")
    gossamer(*run, tmp_path / "none", "--prompt", "a").refused("none", "make one with quantize")
    gossamer(*run, program, "--config", "huge", "--prompt", "a").refused("huge", "small")
    gossamer(*run, program, "--config", config).refused("--prompt")
    gossamer(*run, program, "--config", config, "--prompt", "a", "--stalls", 1).refused("stalls")
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump({**ENGINE, "bank_lines": 16, "banks": 4}))
    gossamer(*run, program, "--config", tiny, "--golden", "--prompt", "a").refused("no room", "bank_lines")
    (program / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    gossamer(*run, program, "--config", config, "--prompt", "a").refused(str(program), "cannot be read")


def test_build_and_what_it_refuses(gossamer, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "chip"
    result = gossamer("accelerator", "build", "--config", config, "--out", out, "--json").json
    assert result["multipliers"] == 128
    assert (out / "rtl" / "gossamer_engine.v").exists()
    odd = tmp_path / "odd.yaml"
    odd.write_text("columns: 12")
    gossamer("accelerator", "build", "--config", odd, "--out", out).refused("columns is 12", "power of two")


def test_synthesize_refuses_what_is_no_liberty(gossamer, config: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells.lib"
    gossamer("accelerator", "synthesize", "--config", config, "--liberty", cells).refused("cells.lib")
    cells.write_text("module cells; endmodule")
    gossamer("accelerator", "synthesize", "--config", config, "--liberty", cells).refused("cells.lib")


def test_table1_refuses_a_process_that_is_none(gossamer, tmp_path: Path) -> None:
    gossamer("accelerator", "table1", "--technology", tmp_path / "none.yaml").refused("none.yaml", "sg13g2")
