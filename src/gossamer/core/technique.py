"""The registry of techniques.

A technique is one frozen dataclass with its settings and one method that does the work. Registering a class under a
name makes it usable as `do: NAME` in a plan; the other keys of that plan step are the dataclass's fields.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gossamer.core.errors import PlanError

T = TypeVar("T")
_TECHNIQUES: dict[str, type] = {}


def technique(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: registers a frozen dataclass under `name` (once)."""

    def register(cls: type[T]) -> type[T]:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"technique {name!r} must be a dataclass")
        if _TECHNIQUES.setdefault(name, cls) is not cls:
            raise ValueError(f"technique {name!r} is registered twice")
        return cls

    return register


def known_techniques() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_TECHNIQUES))


def class_of(name: str) -> type:
    """The class registered under `name`. Raises `PlanError` if there is none."""
    cls = _TECHNIQUES.get(name)
    if cls is None:
        raise PlanError(f"unknown technique {name!r}: known are {', '.join(known_techniques())}")
    return cls


def name_of(instance: object) -> str:
    """The registered name of a technique's class."""
    for name, cls in _TECHNIQUES.items():
        if type(instance) is cls:
            return name
    raise PlanError(f"{type(instance).__name__} is not a registered technique")


def build(name: str, settings: Mapping[str, Any]) -> Any:
    """The technique `name` with `settings`. Raises `PlanError` for an unknown name, field or value type."""
    cls = class_of(name)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in settings.items():
        if key not in fields:
            raise PlanError(f"technique {name!r} has no setting {key!r}: it takes {', '.join(fields) or 'none'}")
        if not _fits(value, hints[key]):
            raise PlanError(f"setting {key!r} of technique {name!r} cannot be {value!r}: it takes {hints[key]}")
    missing = [
        key
        for key, field in fields.items()
        if key not in settings and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise PlanError(f"technique {name!r} needs the setting {missing[0]!r}")
    try:
        return cls(**settings)
    except ValueError as error:
        raise PlanError(f"technique {name!r}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_args(hint):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)
