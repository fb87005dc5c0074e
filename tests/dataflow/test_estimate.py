"""The pre-flight estimate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer.core.device import Device
from gossamer.core.errors import DeviceError, ModelError, PlanError
from gossamer.core.plan import Calibration as PlanCalibration
from gossamer.core.plan import ModelBinding, Plan, Step
from gossamer.dataflow import job
from gossamer.dataflow.estimate import estimate
from gossamer.dataflow.job import Calibration

CORE = Device(
    name="core",
    description="one core of the server that the measured jobs ran on, with --threads 1",
    source="measured: torch products of 1,024 x 1,024 float32 matrices, copies of 256 MB",
    memory_bytes=24_000_000_000,
    bandwidth_bytes_per_s=28.5e9,
    operations_per_s={"float32": 102e9},
    disk_bytes_per_s=1e9,
)
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
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
    large = estimate("llama-3-8b", bits=4, calibration=Calibration(4096, 512))["estimated"]
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


@pytest.mark.parametrize(
    ("name", "samples", "seconds", "peak"),
    [
        ("tiny-vlm", None, 8.4, 548e6),
        ("tiny-lm", None, 12.9, 753e6),
        ("tiny-ovd", None, 10.3, 833e6),
        ("smollm2", 8, 53.8, 2631e6),
        ("smollm2", 16, 73.5, 2580e6),
        ("smollm2", 48, 150.5, 2744e6),
    ],
)
def test_measured_jobs_are_predicted_within_a_factor_of_two(
    tmp_path: Path, name: str, samples: int | None, seconds: float, peak: float
) -> None:
    """Processor seconds and peak resident bytes of `gossamer apply` with gptq at 4 bits (SmolLM2-135M: groups of 64).

    The constants were fitted to these jobs; that of 48 samples was foreseen (154 s, 2.4 GB) before it was run.
    """
    if name == "smollm2":
        (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
        name = str(tmp_path / "config.json")
    calibration = None if samples is None else Calibration(samples)
    found = estimate(name, bits=4, device=CORE, calibration=calibration)["estimated"]
    assert 0.5 < found["time_s"] / seconds < 2
    assert 0.5 < found["peak_memory_bytes"] / peak < 2


def test_rounding_to_nearest_takes_less(tmp_path: Path) -> None:
    """A plan without calibration data has no passes; measured on SmolLM2-135M: 13.6 s and 1,746 MB."""
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    rounding = plan(Step(at="language.blocks.*", do="rtn", bits=4, group=64))
    found = estimate(str(tmp_path / "config.json"), plan=rounding, device=CORE)
    assert 0.5 < found["estimated"]["time_s"] / 13.6 < 2
    assert 0.5 < found["estimated"]["peak_memory_bytes"] / 1746e6 < 2
    assert "no calibration" in found["assumptions"][0]


def test_a_plan_says_how_much_data_it_is_calibrated_on() -> None:
    step = Step(at="language.**", do="gptq", bits=4)
    data = PlanCalibration(task="text", data="heldout", sha256="0" * 64, pool=40, samples=20, settings={"context": 64})
    bound = plan(step).model_copy(update={"calibration": data})
    assert "20 samples of 64 tokens" in estimate("llama-3-8b", plan=bound)["assumptions"][0]


def test_the_job_is_the_one_that_apply_runs() -> None:
    from gossamer.evaluate.text import LONGEST
    from gossamer.search import finish, jobs

    assert (job.BATCH, job.LOGIT_BYTES) == (finish.BATCH, finish.LOGIT_BYTES)
    assert Calibration().samples == jobs.PRESET_SAMPLES
    assert job.TEXT_TOKENS == LONGEST


@pytest.mark.slow
def test_peak_memory_of_a_job_that_runs_now(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from gossamer.evaluate.meters import process_peak_bytes;"
        "from gossamer.search.jobs import apply_job; torch.set_num_threads(1);"
        "apply_job('gptq-w4', 'tiny-vlm-small', Path(sys.argv[1])); print(process_peak_bytes())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    peak = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    predicted = estimate("tiny-vlm-small", bits=4)["estimated"]["peak_memory_bytes"]
    assert 0.5 < predicted / peak < 2
