"""The plan: every decision of a job, immutable, serialisable, bound to one model by a fingerprint."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gossamer.core.budget import Budget
from gossamer.core.described import fault, mapping_in
from gossamer.core.errors import PlanError
from gossamer.core.files import write_text
from gossamer.core.paths import compile_pattern


class _Settings(BaseModel):
    """Every key that is not a field of its own is a field of the technique's dataclass."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        """The technique's settings."""
        return dict(self.model_extra or {})


class Choice(_Settings):
    """One technique, where only one can be."""

    do: str


class Step(_Settings):
    """One technique at the layers that `at` selects."""

    at: str
    do: str

    @model_validator(mode="after")
    def _pattern_is_valid(self) -> "Step":
        compile_pattern(self.at)
        return self


class ModelBinding(BaseModel):
    """The model a plan was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Calibration(BaseModel):
    """The data that calibrated techniques see. Part of the plan, since it decides their bytes.

    `samples` examples are drawn by `seed` from the first `pool` sources (windows, pictures) of `data` (a path or a
    built-in set's name) whose content has `sha256`; `settings` are the task's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    data: str
    sha256: str
    pool: int = Field(gt=0)
    samples: int = Field(gt=0)
    seed: int = 0
    settings: dict[str, Any] = {}


class Operation(BaseModel):
    """The runtime that the weights' formats are for, what is kept of past tokens, and how tokens are drafted (see
    docs/operation.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str | None = None
    kv_cache: Choice | None = None
    speculation: Choice | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"{name} is not known; give {', '.join(cls.model_fields)}")
        return given


class Plan(BaseModel):
    """What `optimize` writes and `apply` replays.

    Compression steps are ordered; of several quantisers that select one layer the last one holds. Layers that no
    step selects stay at 16 bits. The same plan with the same model gives the same bytes on one machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gossamer_plan: int = 1
    model: ModelBinding
    budget: Budget | None = None
    calibration: Calibration | None = None
    compression: tuple[Step, ...] = ()
    operation: Operation = Operation()
    hardware: dict[str, Any] = {}

    @model_validator(mode="after")
    def _version_is_known(self) -> "Plan":
        if self.gossamer_plan != 1:
            raise ValueError(f"plan version {self.gossamer_plan} is unknown: this Gossamer reads version 1")
        return self

    def to_yaml(self) -> str:
        """YAML text; the same plan always gives the same text."""
        data = self.model_dump(exclude_none=True, exclude_defaults=False)
        data = {key: value for key, value in data.items() if value not in ({}, (), [])}
        data["compression"] = [dict(step) for step in data.get("compression", ())]
        return yaml.safe_dump(_plain(data), sort_keys=False, width=110)

    def save(self, path: Path) -> None:
        """Writes the plan atomically."""
        write_text(path, self.to_yaml())

    def check_model(self, family: str, fingerprint: str) -> None:
        """Raises `PlanError` unless the plan was made for the model with this fingerprint."""
        if self.model.fingerprint != fingerprint:
            raise PlanError(
                f"this plan is for another model: it is bound to {self.model.family} {self.model.fingerprint[:19]}…, "
                f"the model given is {family} {fingerprint[:19]}…; use the model it was made for"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def load_plan(path: Path) -> Plan:
    """Reads and validates a plan. Raises `PlanError` naming the file and the field at fault."""
    if not path.exists():
        raise PlanError(f"plan {path} does not exist: give a plan file or a preset such as gptq-w4g64")
    data = mapping_in(path, "plan", "a mapping with gossamer_plan: 1", PlanError)
    if "gossamer_plan" not in data:
        raise PlanError(f"plan {path} is not a Gossamer plan: it must be a mapping with gossamer_plan: 1")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise PlanError(f"plan {path}, {fault(error)}") from error
