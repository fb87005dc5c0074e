"""One frozen dataclass, registered under a name, is a technique."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gossamer.core import technique as registry
from gossamer.core.errors import PlanError
from gossamer.core.technique import build, known_techniques, name_of, technique


@dataclass(frozen=True)
class Shrink:
    """A technique with one setting of each kind."""

    bits: int
    damping: float = 0.01
    group: int | None = None
    order: Literal["act", "none"] = "none"
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits > 8:
            raise ValueError("bits go up to 8")


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TECHNIQUES", {})
    technique("shrink")(Shrink)


def test_a_registered_technique_is_built_from_a_plan_step() -> None:
    made = build("shrink", {"bits": 3, "damping": 1, "group": 64})
    assert made == Shrink(3, damping=1, group=64)
    assert name_of(made) == "shrink"
    assert known_techniques() == ("shrink",)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("shrnk", {"bits": 3}, "unknown technique 'shrnk': known are shrink"),
        ("shrink", {}, "needs the setting 'bits'"),
        ("shrink", {"bits": 3, "grup": 64}, "no setting 'grup'"),
        ("shrink", {"bits": "3"}, "'bits'"),
        ("shrink", {"bits": True}, "'bits'"),
        ("shrink", {"bits": 3.5}, "'bits'"),
        ("shrink", {"bits": 3, "group": "64"}, "'group'"),
        ("shrink", {"bits": 3, "order": "random"}, "'order'"),
        ("shrink", {"bits": 3, "symmetric": 1}, "'symmetric'"),
        ("shrink", {"bits": 9}, "bits go up to 8"),
    ],
)
def test_a_wrong_step_is_refused_with_what_would_be_accepted(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        build(name, settings)


def test_a_name_is_taken_once_and_only_by_a_dataclass() -> None:
    technique("shrink")(Shrink)
    with pytest.raises(ValueError, match="twice"):
        technique("shrink")(dataclass(frozen=True)(type("Other", (), {})))
    with pytest.raises(TypeError, match="dataclass"):
        technique("plain")(type("Plain", (), {}))
    with pytest.raises(PlanError, match="not a registered"):
        name_of(object())
