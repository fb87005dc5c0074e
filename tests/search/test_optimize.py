"""The whole job on a small model: what it writes, that it resumes, and that the same plan gives the same bytes."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gossamer.core.errors import BudgetError, OutputError, PlanError
from gossamer.core.outcome import Measure
from gossamer.core.plan import load_plan
from gossamer.evaluate.running import Running
from gossamer.models.checkpoint import reload
from gossamer.search import optimize as job
from gossamer.search import runtime
from gossamer.search.jobs import apply_job, compare_job, export_job
from gossamer.search.request import OptimizeRequest


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text of a few thousand words."""
    words = random.Random(0).choices(["the", "sea", "ship", "wind", "old", "man", "saw", "north", "went", "of"], k=6000)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words))
    return path


def request(model: Path, text: Path, out: Path, **settings) -> OptimizeRequest:
    return OptimizeRequest(str(model), out, task="text", data=str(text), effort="quick", **settings)


@pytest.fixture(scope="module")
def done(model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    return out, job.optimize(request(model, text, out, ratio=0.65))


def digests(out: Path) -> dict[str, str]:
    files = [out / "plan.yaml", *sorted((out / "checkpoint").iterdir())]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_result_is_complete_and_within_the_budget(done):
    out, result = done
    from gossamer.report.schema import Result

    checked = Result.model_validate(result)
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert checked.measured["weight_bytes"].value <= checked.budget.weight_bytes
    assert checked.parity <= 1e-3
    assert sum(point.chosen for point in checked.pareto) == 1
    assert sum("At the bytes of 3 bits" in note.text for note in checked.notes) == 2
    sizes = [point.weight_bytes for point in checked.pareto if point.kind == "allocated" and not point.chosen]
    assert sizes == sorted(sizes)
    assert len(sizes) >= 5
    for size in sizes:
        assert load_plan(out / "pareto" / f"{size}.yaml").budget.weight_bytes == size
    assert {layer.path for layer in checked.layers} >= {"language.blocks.0.mlp.down_proj", "head.lm_head"}
    assert sum(layer.weight_bytes for layer in checked.layers) < checked.measured["weight_bytes"].value


@pytest.mark.parametrize("kind", ["evolution", "tiered"])
def test_another_search_is_compared_with_the_exact_one(done, model, text, tmp_path, kind):
    out, exact = done
    run = tmp_path / "run"
    shutil.copytree(out, run)
    result = job.optimize(request(model, text, run, ratio=0.65, search=kind))
    assert result["measured"]["weight_bytes"]["value"] <= exact["budget"]["weight_bytes"]
    (told,) = [note["text"] for note in result["notes"] if f"found by {kind} search" in note["text"]]
    assert "the exact allocation has" in told
    assert not any("found by" in note["text"] for note in exact["notes"])


def test_limits_on_a_device_are_kept_and_reported_as_estimates(done, model, text, tmp_path):
    from gossamer.report.build import write_report

    run = tmp_path / "run"
    shutil.copytree(done[0], run)
    asked = {"latency_ms": 0.0015, "peak_memory_bytes": 150_000, "energy_mj": 0.05}
    result = job.optimize(request(model, text, run, device="laptop-cpu", context=32, **asked))
    assert {key: result["budget"][key] for key in asked} == asked
    for key, most in asked.items():
        assert 0 < result["estimated"][key] <= most < result["baseline"]["estimated"][key]
    assert result["uniform"] is None or all(result["uniform"]["estimated"][key] <= asked[key] for key in asked)
    (told,) = [note["text"] for note in result["notes"] if note["text"].startswith("Estimated, not measured")]
    assert "a token after 32 tokens of context" in told
    assert "laptop-cpu" in told
    assert load_plan(run / "plan.yaml").hardware == {"device": "laptop-cpu", "context": 32}
    write_report(run, result)
    assert "mJ allowed" in (run / "report.html").read_text()


def test_both_sides_are_stored_and_run_side_by_side(done):
    out, result = done
    before, after = result["baseline"]["measured"], result["measured"]
    for side in (before, after):
        for key in ("weight_disk_bytes", "weight_memory_bytes", "prefill_ms", "decode_ms"):
            assert 0 < side[key]["low"] <= side[key]["value"] <= side[key]["high"], key
        assert "quartiles" in side["prefill_ms"]["method"]
        assert "image_ms" not in side
        assert "latency_ms" not in side
    assert after["weight_disk_bytes"]["value"] == after["weight_bytes"]["value"]
    assert before["weight_disk_bytes"]["value"] == 2 * before["weight_bytes"]["value"], "it came at 32 bits"
    assert after["weight_memory_bytes"]["value"] >= before["weight_memory_bytes"]["value"], "expanded to floats"
    assert after["engine_weight_bytes"]["value"] < 0.8 * before["engine_weight_bytes"]["value"], "packed as they are"
    for key in ("prefill_ms_ratio", "decode_ms_ratio", "engine_prefill_ms_ratio", "engine_decode_ms_ratio"):
        assert 0 < after[key]["low"] <= after[key]["value"] <= after[key]["high"]
    assert result["seconds"] > 0
    assert result["peak_memory_bytes"] > before["weight_memory_bytes"]["value"]
    told = [note["text"] for note in result["notes"] if "plain transformers" in note["text"]]
    assert len(told) == 1
    assert "run faster" in told[0]
    assert any("computes with packed weights as they are" in note["text"] for note in result["notes"])
    steps = "".join(file.read_text() for file in (out / "steps").glob("*.json"))
    assert "_ms" not in steps + (out / "plan.yaml").read_text()


def test_the_sentence_on_speed_follows_the_interval():
    def said(low: float, high: float) -> list[str]:
        ratio = Measure(value=(low + high) / 2, low=low, high=high, n=15, method="m")
        return runtime.sentences(Running(({}, {}), {"decode_ms": ratio}, ("no image",)))

    assert "do not run faster there (time after / before: decode 1.000 [0.900, 1.100])." in said(0.9, 1.1)[0]
    assert "not expected to run faster there, yet the times differ" in said(0.8, 0.9)[0]
    assert "yet the times differ" in said(1.1, 1.2)[0]
    assert said(0.9, 1.1)[1:] == ["no image"]
    sides = tuple({"engine_weight_bytes": Measure.exact(size)} for size in (8_000_000, 2_000_000))
    ratio = Measure(value=0.5, low=0.4, high=0.6, n=15, method="m")
    native = runtime.sentences(Running(sides, {"engine_decode_ms": ratio}))[1]
    assert "take 8 MB before and 2 MB after (time after / before: decode 0.500 [0.400, 0.600])." in native


def test_plan_replays_to_the_same_bytes(done, model, tmp_path):
    out, _ = done
    apply_job(str(out / "plan.yaml"), str(model), tmp_path / "again")
    first, second = (
        digests(out),
        {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "again").iterdir()},
    )
    assert second["model.safetensors"] == first["model.safetensors"]
    assert second["config.json"] == first["config.json"]


def test_plain_transformers_opens_the_checkpoint(done):
    out, result = done
    with torch.inference_mode():
        logits = reload(out / "checkpoint")(torch.tensor([[5, 6, 7]])).logits
    assert bool(torch.isfinite(logits).all())
    assert result["parity"] <= 1e-3


@pytest.mark.parametrize("transform", ["rotate", "awq"])
def test_a_transform_before_the_search_is_in_the_plan_and_in_the_checkpoint(done, model, text, tmp_path, transform):
    result = job.optimize(request(model, text, tmp_path / "run", ratio=0.75, transform=transform))
    plan = load_plan(tmp_path / "run" / "plan.yaml")
    assert plan.compression[0].do == {"rotate": "rotate", "awq": "awq_scales"}[transform]
    assert {step.do for step in plan.compression[1:]} == {"qronos"}
    assert result["parity"] <= 1e-3
    assert result["measured"]["weight_bytes"]["value"] <= 0.75 * result["baseline"]["measured"]["weight_bytes"]["value"]
    untouched = done[1]["baseline"]["measured"]
    assert result["baseline"]["measured"]["weight_bytes"] == untouched["weight_bytes"]
    assert result["baseline"]["measured"]["perplexity"]["value"] == pytest.approx(
        untouched["perplexity"]["value"], rel=1e-3
    )
    assert any("which keeps what it computes" in note["text"] for note in result["notes"])
    apply_job(str(tmp_path / "run" / "plan.yaml"), str(model), tmp_path / "again")
    stored = [folder / "model.safetensors" for folder in (tmp_path / "run" / "checkpoint", tmp_path / "again")]
    assert stored[0].read_bytes() == stored[1].read_bytes()


def test_under_vllm_the_checkpoint_holds_only_what_it_serves(model, text, tmp_path):
    least = job.optimize(request(model, text, tmp_path / "none", ratio=1.0, runtime="vllm", dry_run=True))["estimated"]
    size = (least["smallest_weight_bytes"] + least["dense_weight_bytes"]) // 2
    result = job.optimize(request(model, text, tmp_path / "run", weight_bytes=size, runtime="vllm"))
    assert result["parity"] <= 1e-3
    config = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()
    assert {group["format"] for group in groups} == {"pack-quantized"}
    assert {group["weights"]["num_bits"] for group in groups} <= {4, 8}
    chosen = {layer["path"]: layer["choice"] for layer in result["layers"]}
    assert chosen["embeddings.embed_tokens"] == chosen["head.lm_head"] == "16 bits"
    for block in ("language.blocks.0", "language.blocks.1"):
        assert len({chosen[f"{block}.self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert chosen[f"{block}.mlp.gate_proj"] == chosen[f"{block}.mlp.up_proj"]


def test_a_run_folder_of_another_model_is_refused_before_work(done, text, monkeypatch):
    out, _ = done
    monkeypatch.setattr("gossamer.search.opening.open_parts", lambda *_: pytest.fail("work has started"))
    with pytest.raises(OutputError, match=r"holds the candidates of another model \(sha256:.*choose another --out"):
        job.optimize(request(Path("tiny-lm"), text, out, ratio=0.65))


def test_a_plan_that_asks_for_more_calibration_than_there_is_names_its_entry(done, model, tmp_path):
    plan = load_plan(done[0] / "plan.yaml")
    more = plan.model_copy(update={"calibration": plan.calibration.model_copy(update={"samples": 10_000})})
    more.save(tmp_path / "plan.yaml")
    with pytest.raises(PlanError, match=r"calibration.samples cannot be 10000 .*: the data holds .* give more data"):
        apply_job(str(tmp_path / "plan.yaml"), str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_technique_carries_the_plan_out_and_replays(model, text, tmp_path):
    result = job.optimize(request(model, text, tmp_path / "run", ratio=0.65, technique="signround"))
    plan = load_plan(tmp_path / "run" / "plan.yaml")
    assert {step.do for step in plan.compression} == {"signround"}
    assert result["parity"] <= 1e-3
    apply_job(str(tmp_path / "run" / "plan.yaml"), str(model), tmp_path / "again")
    stored = [folder / "model.safetensors" for folder in (tmp_path / "run" / "checkpoint", tmp_path / "again")]
    assert stored[0].read_bytes() == stored[1].read_bytes()


def test_a_finished_run_resumes_without_work_and_with_the_same_bytes(done, model, text, monkeypatch):
    out, _ = done
    before = digests(out)
    monkeypatch.setattr("gossamer.search.bank.pass_through", lambda *_: pytest.fail("quantised again"))
    monkeypatch.setattr("gossamer.search.trials.Bench.__call__", lambda *_: pytest.fail("measured again"))
    job.optimize(request(model, text, out, ratio=0.65))
    assert digests(out) == before


def test_dry_run_writes_nothing(model, text, tmp_path):
    result = job.optimize(request(model, text, tmp_path / "run", ratio=0.65, dry_run=True))
    assert not (tmp_path / "run").exists()
    assert result["estimated"]["smallest_weight_bytes"] < result["estimated"]["dense_weight_bytes"]


def test_infeasible_budget_says_what_is_feasible_and_that_is(model, text, tmp_path):
    with pytest.raises(BudgetError, match=r"nearest feasible is --memory (\d+)") as caught:
        job.optimize(request(model, text, tmp_path / "run", weight_bytes=1000))
    assert not (tmp_path / "run").exists()
    nearest = int(str(caught.value).rsplit(" ", 1)[1])
    assert job.open_job(request(model, text, tmp_path / "run", weight_bytes=nearest)).budget.weight_bytes == nearest
    with pytest.raises(BudgetError):
        job.open_job(request(model, text, tmp_path / "run", weight_bytes=nearest - 1))


def test_floor_alone_finds_a_size_and_reports_it(model, text, tmp_path):
    result = job.optimize(request(model, text, tmp_path / "run", max_loss_percent=50.0))
    assert result["measured"]["saving_percent"]["value"] > 0


def test_compare_and_export(done, model, text, tmp_path):
    out, _ = done
    found = compare_job(str(model), str(out), task="text", data=str(text), limit=8)
    assert found["weight_bytes_ratio"] < 1
    assert found["difference"]["perplexity"]["n"] == 8
    assert "ratio" not in found
    export_job(out, tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        out / "checkpoint" / "model.safetensors"
    ).read_bytes()


def test_plan_for_another_model_is_refused(done, tmp_path):
    out, _ = done
    with pytest.raises(PlanError, match="another model"):
        apply_job(str(out / "plan.yaml"), "tiny-lm", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def killed(command: list[str], moment: float) -> bool:
    """Starts the command and kills it with SIGKILL after so many seconds; false if it had ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_killed_twice_it_ends_with_the_same_bytes(done, model, text, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "gossamer", "optimize", str(model), "--ratio", "0.65", "--task", "text", "--data",
        str(text), "--effort", "quick", "--out", str(out), "--threads", str(torch.get_num_threads()),
    ]  # fmt: skip
    assert killed(command, 7.0)
    killed(command, 10.0)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert digests(out) == digests(done[0])


@pytest.mark.slow
def test_killed_at_ten_random_moments_tiny_vlm_ends_with_the_same_bytes(tmp_path):
    base = [sys.executable, "-m", "gossamer", "optimize", "tiny-vlm", "--ratio", "0.2", "--effort", "quick"]
    started = time.monotonic()
    subprocess.run([*base, "--out", str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    length = time.monotonic() - started
    moments = random.Random(int(os.environ.get("GOSSAMER_SEED", "0")))
    out = tmp_path / "killed"
    command = [*base, "--out", str(out)]
    for _ in range(10):  # each goes on where the one before was killed: the moments are spread over the whole job
        while not killed(command, moments.uniform(1, length / 4)):
            assert digests(out) == digests(tmp_path / "whole")
            shutil.rmtree(out)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert digests(out) == digests(tmp_path / "whole")
