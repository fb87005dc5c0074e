"""Bad input ends in one clear sentence, exit code 2, and nothing half-written."""

import json
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Gossamer, left_behind, make_lm

PLAN_HEAD = "gossamer_plan: 1\nmodel: {{family: llama, fingerprint: '{}'}}\n"


@pytest.fixture
def copy(lm: Path, tmp_path: Path) -> Path:
    """A copy of the random model to be damaged."""
    return Path(shutil.copytree(lm, tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output place in a directory of its own, which must stay empty."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


@pytest.fixture
def nothing_written(out: Path) -> Callable[[], None]:
    """The check that no output, whole or partial, appeared."""

    def check() -> None:
        assert left_behind(out.parent) == []

    return check


def change_config(model: Path, **values: object) -> None:
    """Overwrites entries of a config."""
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ------------------------------------------------------------------------------------------------- models


VERBS_ON_A_MODEL = ("inspect", "evaluate", "generate", "estimate", "optimize", "apply", "compare")


def on_model(verb: str, model: Path | str, out: Path) -> list[str]:
    """A sound command line but for the model."""
    return {
        "inspect": ["inspect", str(model)],
        "evaluate": ["evaluate", str(model), "--limit", "2"],
        "generate": ["generate", str(model), "--prompt", "a cat", "--max-tokens", "2"],
        "estimate": ["estimate", str(model), "--bits", "4"],
        "optimize": ["optimize", str(model), "--ratio", "0.7", "--effort", "quick", "--out", str(out)],
        "apply": ["apply", "rtn-w4", str(model), "--out", str(out)],
        "compare": ["compare", str(model), str(model)],
    }[verb]


@pytest.mark.parametrize("verb", VERBS_ON_A_MODEL)
def test_missing_model(gossamer: Gossamer, tmp_path: Path, out: Path, nothing_written, verb: str) -> None:
    gossamer(*on_model(verb, tmp_path / "no-such-model", out)).refused("no-such-model", "does not exist", "tiny-vlm")
    nothing_written()


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "optimize", "apply"])
@pytest.mark.parametrize("kept", [0.5, 0.001])
def test_truncated_safetensors(gossamer, copy: Path, out: Path, nothing_written, verb: str, kept: float) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(kept * weights.stat().st_size)])
    gossamer(*on_model(verb, copy, out)).refused("model.safetensors")
    nothing_written()


@pytest.mark.parametrize("verb", ["evaluate", "optimize", "apply"])
def test_config_without_weights(gossamer, copy: Path, out: Path, nothing_written, verb: str) -> None:
    (copy / "model.safetensors").unlink()
    gossamer(*on_model(verb, copy, out)).refused(str(copy), "no weights", "model.safetensors is needed")
    nothing_written()


@pytest.mark.parametrize("verb", ["inspect", "optimize"])
def test_unknown_architecture(gossamer, copy: Path, out: Path, nothing_written, verb: str) -> None:
    change_config(copy, model_type="martian", architectures=["MartianForCausalLM"])
    gossamer(*on_model(verb, copy, out)).refused("martian")
    nothing_written()


def test_damaged_config(gossamer, copy: Path) -> None:
    (copy / "config.json").write_text("{")
    gossamer("inspect", copy).refused("config.json")


def test_weights_of_other_shapes_than_the_config(gossamer, copy: Path, out: Path, nothing_written) -> None:
    change_config(copy, intermediate_size=48)
    gossamer(*on_model("apply", copy, out)).refused(str(copy), "do not fit its config")
    nothing_written()


def test_a_file_that_is_no_model(gossamer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    gossamer("inspect", tmp_path / "notes.txt").refused("notes.txt", "not a model")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    gossamer("inspect", tmp_path / "broken.gguf").refused("broken.gguf")
    (tmp_path / "broken.bin").write_bytes(b"\0" * 10)
    gossamer("inspect", tmp_path / "broken.bin").refused("broken.bin")


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "-3MB"], ("'-3MB'", "such as 3MB")),
        (["--memory", "0"], ("'0'", "at least 1 byte")),
        (["--memory", "3 parsecs"], ("'3 parsecs'", "such as 3MB")),
        (["--memory", "nan"], ("'nan'",)),
        (["--memory", "1e30"], ("'1e30'", "8 EiB")),
        (["--memory", "1"], ("cannot be met", "nearest feasible is --memory")),
        (["--ratio", "0"], ("'0'", "above 0 and at most 1")),
        (["--ratio", "1.5"], ("'1.5'",)),
        (["--ratio", "-0.3"], ("'-0.3'",)),
        (["--ratio", "0.01"], ("cannot be met", "nearest feasible is --memory")),
        (["--ratio", "0.5", "--max-loss", "-1%"], ("'-1%'",)),
        (["--ratio", "0.5", "--max-loss", "little"], ("'little'",)),
        (["--ratio", "0.5", "--memory", "3MB"], ("--memory", "--ratio", "not both")),
        ([], ("--memory", "--ratio", "--max-loss", "--peak-memory", "--latency", "--energy")),
        (["--latency", "5"], ("--device", "laptop-cpu", "h100")),
        (["--energy", "5", "--device", "abacus"], ("abacus", "laptop-cpu")),
        (["--energy", "-5", "--device", "h100"], ("-5", "positive")),
        (["--latency", "nan", "--device", "h100"], ("nan", "positive")),
        (["--ratio", "0.5", "--context", "0", "--peak-memory", "1GB"], ("context of 0",)),
        (["--latency", "1e-9", "--device", "h100"], ("cannot be met", "nearest feasible is --latency")),
        (["--peak-memory", "1kB"], ("cannot be met", "nearest feasible is --peak-memory")),
        (["--ratio", "0.9", "--runtime", "abacus"], ("abacus", "vllm", "llama.cpp")),
    ],
)
def test_absurd_budgets(gossamer, lm: Path, out: Path, nothing_written, arguments: list[str], said: tuple[str]) -> None:
    gossamer("optimize", lm, *arguments, "--out", out).refused(*said)
    nothing_written()


def test_the_nearest_feasible_budget_is_feasible(gossamer, lm: Path, out: Path) -> None:
    sentence = gossamer("optimize", lm, "--memory", "1", "--out", out).refused()
    nearest = sentence.split("--memory ")[1].split()[0]
    assert gossamer("optimize", lm, "--memory", nearest, "--out", out, "--dry-run", "--effort", "quick").code == 0
    less = str(int(nearest) - 1)
    gossamer("optimize", lm, "--memory", less, "--out", out, "--dry-run", "--effort", "quick").refused(nearest)


# --------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty.txt"),
        ("blank.txt", b" \n\n ", "blank.txt"),
        ("binary.txt", b"\xff\xfe\x00\x01" * 50, "UTF-8"),
        ("short.txt", b"Too little to calibrate on.", "short.txt"),
    ],
)
def test_unusable_calibration_text(
    gossamer, lm: Path, tmp_path: Path, out: Path, nothing_written, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    arguments = ("--task", "text", "--data", str(tmp_path / name))
    gossamer("optimize", lm, "--ratio", "0.7", "--effort", "quick", *arguments, "--out", out).refused(said)
    nothing_written()


def test_missing_data(gossamer, lm: Path, tmp_path: Path, out: Path, nothing_written) -> None:
    arguments = ("--task", "text", "--data", str(tmp_path / "none.txt"))
    gossamer("evaluate", lm, *arguments).refused("none.txt", "does not exist")
    gossamer("optimize", lm, "--ratio", "0.7", *arguments, "--out", out).refused("none.txt")
    gossamer("optimize", lm, "--ratio", "0.7", "--test-data", tmp_path / "none.txt", "--out", out).refused("none.txt")
    nothing_written()


def test_unknown_task(gossamer, lm: Path, out: Path, nothing_written) -> None:
    gossamer("evaluate", lm, "--task", "poetry").refused("'poetry'", "text, vqa, detection, classification")
    arguments = ("--ratio", "0.7", "--task", "poetry", "--data", "heldout", "--out", out)
    gossamer("optimize", lm, *arguments).refused("'poetry'", "text, vqa, detection, classification")
    gossamer("compare", lm, lm, "--task", "poetry", "--data", "heldout").refused("'poetry'")
    nothing_written()


def test_a_task_the_model_cannot_do(gossamer, lm: Path, out: Path, nothing_written) -> None:
    gossamer("evaluate", lm, "--task", "vqa", "--data", "scenes", "--limit", "4").refused()
    gossamer("optimize", lm, "--ratio", "0.7", "--task", "vqa", "--data", "scenes", "--out", out).refused()
    nothing_written()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"this is no image", "is not an image"),
        (b"", "is not an image"),
        (None, "does not exist"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image"),
    ],
)
def test_an_image_that_is_none(gossamer, tmp_path: Path, out: Path, nothing_written, content, said: str) -> None:
    if content is not None:
        (tmp_path / "cat.png").write_bytes(content)
    question = {"image": "cat.png", "question": "is there a cat?", "answer": "no"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    arguments = ("--task", "vqa", "--data", str(tmp_path / "questions.jsonl"))
    gossamer("evaluate", "tiny-vlm", *arguments).refused("cat.png", said)
    gossamer("optimize", "tiny-vlm", "--ratio", "0.5", *arguments, "--out", out).refused("cat.png", said)
    nothing_written()


@pytest.mark.parametrize("line", ["{", "[1]", '{"question": "is there a cat?", "answer": "no"}', '{"image": "a.png"}'])
def test_malformed_questions(gossamer, tmp_path: Path, line: str) -> None:
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    gossamer("evaluate", "tiny-vlm", "--task", "vqa", "--data", tmp_path / "questions.jsonl").refused("questions.jsonl")


def test_a_tokenizer_that_does_not_fit_the_model(gossamer, tmp_path: Path, out: Path, nothing_written) -> None:
    model = make_lm(tmp_path / "small-vocabulary", vocabulary=300)
    gossamer("evaluate", model, "--limit", "2").refused("tokenizer", "300")
    gossamer("optimize", model, "--ratio", "0.7", "--out", out).refused("tokenizer", "300")
    nothing_written()


def test_no_tokenizer_or_a_damaged_one(gossamer, copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    gossamer("evaluate", copy, "--limit", "2").refused("tokenizer")
    for path in copy.glob("tokenizer*"):
        path.unlink()
    gossamer("evaluate", copy, "--limit", "2").refused("tokenizer")


# -------------------------------------------------------------------------------------------------- plans


@pytest.fixture
def plan(lm: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a plan for the random model with the given further lines."""
    from gossamer.models.open import open_model

    fingerprint = open_model(str(lm)).fingerprint

    def write(lines: str) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(PLAN_HEAD.format(fingerprint) + lines)
        return path

    return write


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("compression: [{at: 'language.**', do: rtm, bits: 4}]\n", ("'rtm'", "rtn")),
        ("compression: [{at: 'language.**', do: rtn}]\n", ("'bits'",)),
        ("compression: [{at: 'language.**', do: rtn, bits: four}]\n", ("'bits'",)),
        ("compression: [{at: 'language.**', do: rtn, bits: 1}]\n", ("bits", "2 to 8")),
        ("compression: [{at: 'language.**', do: rtn, bits: 4, gruop: 64}]\n", ("'gruop'", "group")),
        ("compression: [{at: 'langauge.**', do: rtn, bits: 4}]\n", ("langauge.**",)),
        ("compression: [{at: 'language.{0', do: rtn, bits: 4}]\n", ("language.{0", "braces")),
        ("compression: [{at: 'language.**', do: rtn, bits: 4, group: 7}]\n", ("group",)),
        ("compression: [{do: rtn, bits: 4}]\n", ("plan.yaml", "compression.0.at")),
        ("compressoin: []\n", ("plan.yaml", "compressoin")),
        ("compression: [\n", ("plan.yaml", "YAML")),
        ("compression: [{at: 'language.**', do: gptq, bits: 4}]\n", ("calibration",)),
    ],
)
def test_malformed_plans(gossamer, lm: Path, plan, out: Path, nothing_written, lines: str, said: tuple[str]) -> None:
    gossamer("apply", plan(lines), lm, "--out", out).refused(*said)
    nothing_written()


def test_a_plan_for_another_model(gossamer, plan, tmp_path: Path, out: Path, nothing_written) -> None:
    other = make_lm(tmp_path / "other", seed=1)
    gossamer("apply", plan(""), other, "--out", out).refused("another model", "use the model it was made for")
    nothing_written()


def test_a_plan_whose_calibration_data_changed(gossamer, lm: Path, plan, out: Path, nothing_written) -> None:
    lines = (
        f"calibration: {{task: text, data: heldout, sha256: '{'0' * 64}', pool: 10, samples: 2}}\n"
        "compression: [{at: 'language.**', do: gptq, bits: 4}]\n"
    )
    gossamer("apply", plan(lines), lm, "--out", out).refused("heldout", "changed")
    nothing_written()


@pytest.mark.parametrize("name", ["gptq-w9", "gptq-w4g7", "gtpq-w4", "rtn", "wanda-x", "gptq-w4+wanda-50"])
def test_unknown_presets(gossamer, lm: Path, out: Path, nothing_written, name: str) -> None:
    gossamer("apply", name, lm, "--out", out).refused(f"preset '{name}'")
    nothing_written()


def test_missing_plan(gossamer, lm: Path, tmp_path: Path, out: Path) -> None:
    gossamer("apply", tmp_path / "none.yaml", lm, "--out", out).refused("none.yaml", "does not exist")
    gossamer("estimate", lm, "--plan", tmp_path / "none.yaml").refused("none.yaml", "does not exist")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bits", "1"], "2 to 8"),
        (["--bits", "4", "--group", "0"], "group"),
        (["--bits", "4", "--keep", "language.blocks.0"], "language.blocks.0"),
        (["--bits", "4", "--keep", "language.blocks.0.*=many"], "many"),
        (["--bits", "4", "--device", "toaster"], "toaster"),
        ([], "--bits"),
    ],
)
def test_estimates_of_nonsense(gossamer, lm: Path, arguments: list[str], said: str) -> None:
    gossamer("estimate", lm, *arguments).refused(said)


# ----------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("verb", ["apply", "optimize"])
def test_an_output_below_a_file(gossamer, lm: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("in the way")
    gossamer(*on_model(verb, lm, tmp_path / "file" / "out")).refused(str(tmp_path / "file"))
    assert left_behind(tmp_path) == ["file"]


@pytest.mark.parametrize("verb", ["apply", "optimize"])
def test_an_output_where_nothing_can_be_written(gossamer, lm: Path, verb: str) -> None:
    gossamer(*on_model(verb, lm, Path("/proc/gossamer"))).refused("/proc/gossamer")


@pytest.mark.parametrize("verb", ["apply", "optimize"])
def test_a_directory_full_of_other_things_is_never_touched(gossamer, lm: Path, tmp_path: Path, verb: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    gossamer(*on_model(verb, lm, mine)).refused(str(mine))
    assert left_behind(tmp_path) == ["mine", "mine/thesis.tex"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk(program: Gossamer, lm: Path, out: Path, nothing_written) -> None:
    def no_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ended = program(*on_model("apply", lm, out), env={"PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=no_space)
    ended.refused("cannot", "File too large", "free space")
    nothing_written()


def test_a_full_disk_during_optimize_leaves_whole_steps_only(program: Gossamer, lm: Path, out: Path) -> None:
    def little_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    arguments = ("optimize", lm, "--ratio", "0.7", "--effort", "quick", "--out", out)
    ended = program(*arguments, env={"PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=little_space)
    ended.refused("cannot", "File too large", "free space")
    left = left_behind(out.parent)
    assert not [name for name in left if "partial" in name or name.endswith((".safetensors", ".html"))]
    for path in out.rglob("*.json"):
        json.loads(path.read_text())


def test_runs_that_are_none(gossamer, tmp_path: Path, out: Path, nothing_written) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "result.json").write_text("{")
    for run in (tmp_path / "none", tmp_path / "damaged", tmp_path):
        gossamer("report", run).refused(str(run))
        gossamer("export", run, "--out", out).refused(str(run))
    nothing_written()


def test_data_for_a_plan(gossamer, lm: Path, plan, out: Path, nothing_written) -> None:
    gossamer("apply", plan(""), lm, "--out", out, "--data", "heldout").refused("--data", "plan.yaml")
    nothing_written()


def test_a_preset_without_data(gossamer, lm: Path, tmp_path: Path, out: Path, nothing_written) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(lm, bare, ignore=shutil.ignore_patterns("gossamer.json"))
    gossamer("apply", "gptq-w4", bare, "--out", out).refused("--task")
    gossamer("apply", "gptq-w4", bare, "--out", out, "--task", "text").refused("--data")
    # also where only the proof of the checkpoint would need them, before there is one
    gossamer("apply", "rtn-w4", bare, "--out", out, "--task", "text").refused("--data")
    gossamer("apply", "rtn-w4", bare, "--out", out, "--task", "text", "--data", "none.txt").refused("none.txt")
    nothing_written()
