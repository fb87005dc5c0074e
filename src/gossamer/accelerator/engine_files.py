"""Engines on disk: YAML with the fields of `IntegerEngine`. Presets ship in `engines/`; users add their own."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine

PRESETS = Path(__file__).parent / "engines"


def engine_names() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def load_engine(ref: str) -> IntegerEngine:
    """The engine of a preset's name or a YAML file's path.

    Raises:
        SettingError: no such file, or what is wrong in it: the field and what would be accepted.
    """
    path = PRESETS / f"{ref}.yaml" if ref in engine_names() else Path(ref).expanduser()
    if not path.is_file():
        raise SettingError(f"no engine {ref!r}: give a YAML file or one of {', '.join(engine_names())}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path} is no YAML that can be read: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise SettingError(f"{path} holds no fields: give some of {', '.join(IntegerEngine.model_fields)}")
    try:
        return IntegerEngine(**data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = f"unknown; fields are {', '.join(IntegerEngine.model_fields)}"
        raise SettingError(f"{path}: {where}: {what}" if where else f"{path}: {what}") from error
