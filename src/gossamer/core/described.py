"""What users describe in small YAML files (plans, devices, engines, …): how these are read, what is said of faults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gossamer.core.errors import GossamerError

Model = TypeVar("Model", bound=BaseModel)


def mapping_in(path: Path, what: str, wanted: str, error: type[GossamerError]) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises `error`, which names the file as `what` and says that `wanted` is to be written, for a file that cannot be
    read, is no YAML, or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{what} {path} cannot be read: {problem}") from problem
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise error(f"{what} {path} is not valid YAML{line}: write {wanted}") from problem
    if not isinstance(data, dict):
        raise error(f"{what} {path} is not a mapping: write {wanted}")
    return data


def fault(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """`field X: what is wrong with it`, of the first fault; with `model`, an unknown field is told the known ones."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    what = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden" and model is not None:
        what = f"unknown; fields are {', '.join(model.model_fields)}"
    return f"field {field}: {what}" if field else what


@dataclass(frozen=True)
class Described(Generic[Model]):
    """A kind of thing that YAML files describe: those in `folder` ship with the package, users write their own.

    Errors are `error`s. A file that gives no `name`, where `model` has one, is called as the file.
    """

    kind: str
    model: type[Model]
    folder: Path
    error: type[GossamerError]

    @property
    def names(self) -> tuple[str, ...]:
        """The presets, sorted."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.yaml")))

    def load(self, ref: str) -> Model:
        """The preset or YAML file that `ref` names. Raises `error`: the file, the field, and what is accepted."""
        path = self.folder / f"{ref}.yaml" if ref in self.names else Path(ref).expanduser()
        if not path.is_file():
            raise self.error(f"{self.kind} {ref} does not exist: give a YAML file or one of {', '.join(self.names)}")
        data = mapping_in(path, self.kind, f"some of {', '.join(self.model.model_fields)}", self.error)
        name = {"name": path.stem} if "name" in self.model.model_fields else {}
        try:
            return self.model.model_validate({**name, **data})
        except ValidationError as problem:
            raise self.error(f"{self.kind} {path}, {fault(problem, self.model)}") from problem
