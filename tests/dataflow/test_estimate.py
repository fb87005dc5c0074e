"""The pre-flight estimate."""

from pathlib import Path

import pytest

from gossamer.core.errors import DeviceError, ModelError, PlanError
from gossamer.core.plan import ModelBinding, Plan, Step
from gossamer.dataflow.estimate import Calibration, estimate

KEYS = {"weight_bytes", "saving_percent", "peak_memory_bytes", "disk_bytes", "time_s"}


def plan(*steps: Step) -> Plan:
    return Plan(model=ModelBinding(family="llama", fingerprint="sha256:" + "0" * 64), compression=steps)


@pytest.mark.parametrize(("name", "last", "saving"), [("llama-3-8b", 31, 40.74), ("qwen3-8b", 35, 40.04)])
def test_the_published_saving_without_scales(name: str, last: int, saving: float) -> None:
    found = estimate(name, bits=8, keep=[f"language.blocks.{{0,{last}}}.*=16"], scales=False)
    assert set(found["estimated"]) == KEYS
    assert round(found["estimated"]["saving_percent"], 2) == saving
    assert found["device"] == "laptop-cpu"
    assert not found["fits_memory"]
    assert found["estimated"]["peak_memory_bytes"] > 4 * 8_000_000_000
    assert found["estimated"]["disk_bytes"] >= found["estimated"]["weight_bytes"] + found["scale_bytes"]


def test_a_plan_and_a_rule_of_equal_meaning_agree(tmp_path: Path) -> None:
    same = plan(
        Step(at="language.blocks.*", do="gptq", bits=8),
        Step(at="language.blocks.0", do="gptq", bits=4, group=128),
    )
    same.save(tmp_path / "plan.yaml")
    by_plan = estimate("llama-3-8b", plan=tmp_path / "plan.yaml", device="server-cpu")
    low = estimate("llama-3-8b", bits=4, group=128)["estimated"]["weight_bytes"]
    high = estimate("llama-3-8b", bits=8)["estimated"]["weight_bytes"]
    share = (high - by_plan["estimated"]["weight_bytes"]) / (high - low)
    assert share == pytest.approx(1 / 32)
    assert by_plan["device"] == "server-cpu"


def test_what_is_not_counted_is_said() -> None:
    found = estimate("llama-3-8b", plan=plan(Step(at="language.**", do="spin")))
    assert found["estimated"]["saving_percent"] == 0
    assert any("spin" in line for line in found["warnings"])
    found = estimate("qwen3-8b", bits=4, group=768)
    assert any("does not divide" in line for line in found["warnings"])


def test_more_calibration_costs_more() -> None:
    small = estimate("llama-3-8b", bits=4, calibration=Calibration(8, 64))["estimated"]
    large = estimate("llama-3-8b", bits=4, calibration=Calibration(128, 512))["estimated"]
    assert small["time_s"] < large["time_s"]
    assert small["peak_memory_bytes"] < large["peak_memory_bytes"]
    fast = estimate("llama-3-8b", bits=4, device="server-cpu")["estimated"]["time_s"]
    assert fast < estimate("llama-3-8b", bits=4, device="raspberry-pi-5")["estimated"]["time_s"]


def test_bad_input() -> None:
    with pytest.raises(PlanError, match="either a plan"):
        estimate("llama-3-8b")
    with pytest.raises(PlanError, match="go with --bits"):
        estimate("llama-3-8b", plan=plan(), group=4)
    with pytest.raises(PlanError, match="bits cannot be 12"):
        estimate("llama-3-8b", bits=12)
    with pytest.raises(DeviceError, match="abacus"):
        estimate("llama-3-8b", bits=4, device="abacus")
    with pytest.raises(ModelError, match="nowhere"):
        estimate("./nowhere", bits=4)
    with pytest.raises(PlanError, match="selects no layer"):
        estimate("llama-3-8b", plan=plan(Step(at="vision.**", do="gptq", bits=4)))
