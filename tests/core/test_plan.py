"""Plans survive the disk, and malformed ones say where."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.core.budget import Budget
from gossamer.core.errors import PlanError
from gossamer.core.plan import Calibration, Choice, ModelBinding, Operation, Plan, Step, load_plan

FINGERPRINT = "sha256:" + "0123456789abcdef" * 4
HEADER = f"gossamer_plan: 1\nmodel: {{family: llama, fingerprint: '{FINGERPRINT}'}}\n"

NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
SETTING = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8)
STEP = st.builds(
    lambda at, do, settings: Step(**{**settings, "at": at, "do": do}),
    st.lists(NAME, min_size=1, max_size=4).map(".".join),
    NAME,
    st.dictionaries(NAME.filter(lambda name: name not in ("at", "do", "settings")), SETTING, max_size=4),
)
CHOICE = st.builds(
    lambda do, settings: Choice(**{**settings, "do": do}),
    NAME,
    st.dictionaries(NAME.filter(lambda name: name not in ("do", "settings")), SETTING, max_size=4),
)
PLAN = st.builds(
    Plan,
    model=st.just(ModelBinding(family="llama", fingerprint=FINGERPRINT)),
    budget=st.none() | st.builds(Budget, weight_bytes=st.none() | st.integers(1, 2**40)),
    calibration=st.none()
    | st.builds(Calibration, task=NAME, data=NAME, sha256=st.just("0" * 64), samples=st.integers(1, 999)),
    compression=st.lists(STEP, max_size=4).map(tuple),
    operation=st.builds(Operation, kv_cache=st.none() | CHOICE, speculation=st.none() | CHOICE),
)


@given(plan=PLAN)
def test_a_plan_survives_the_disk_and_is_always_spelled_alike(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    plan.save(path)
    again = load_plan(path)
    assert again.to_yaml() == plan.to_yaml() == path.read_text(encoding="utf-8")
    assert [(step.at, step.do, step.settings) for step in again.compression] == [
        (step.at, step.do, {key: value for key, value in step.settings.items() if value is not None})
        for step in plan.compression
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a mapping: write a mapping with gossamer_plan: 1"),
        ("a: 1\n", "not a Gossamer plan"),
        ("- a\n- b\n", "is not a mapping"),
        ("gossamer_plan: [1\n", "not valid YAML"),
        ("gossamer_plan: 1\n", "field model"),
        (HEADER.replace("_plan: 1", "_plan: 2"), "version 2"),
        (HEADER.replace(FINGERPRINT, "sha256:12"), r"model\.fingerprint"),
        (HEADER + "compressoin: []\n", "compressoin"),
        (HEADER + "compression: [{do: rtn, bits: 4}]\n", r"compression\.0\.at"),
        (HEADER + "compression: [{at: 'a.{0', do: rtn}]\n", "braces"),
        (HEADER + "budget: {weight_bytes: -1}\n", r"budget\.weight_bytes"),
    ],
)
def test_a_malformed_plan_is_refused_in_one_line_that_names_file_and_field(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=said) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)
    assert "version" in said or "braces" in said or str(path) in str(caught.value)


def test_a_missing_or_unreadable_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "binary.yaml")


def test_a_plan_knows_its_model() -> None:
    plan = Plan(model=ModelBinding(family="llama", fingerprint=FINGERPRINT))
    plan.check_model("llama", FINGERPRINT)
    with pytest.raises(PlanError, match="another model"):
        plan.check_model("llama", "sha256:" + "f" * 64)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("gossamer_plan: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(PlanError, match="not valid YAML"):
        load_plan(path)
