"""How a model is to write: what the user says, else what the plan beside its weights says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.core.errors import SettingError
from gossamer.core.plan import Operation, load_plan
from gossamer.operate.cache import KeyValues
from gossamer.operate.speculate.wish import Wish

NONE = "none"
"""What a user says against the plan."""
_DRAFTERS = {"prompt_lookup": None, "self_draft": "blocks", "draft_model": "model"}
"""Drafters of plans, and the setting that each of them needs."""


def planned(ref: str) -> Operation:
    """What the plan in a run folder, or beside a checkpoint that `apply` wrote, says of operation.

    Raises `PlanError` for a malformed plan.
    """
    file = Path(ref) / "plan.yaml"
    return load_plan(file).operation if file.is_file() else Operation()


def cache_of(operation: Operation, said: str | None = None) -> KeyValues | None:
    """What is kept of past tokens: as `said` (see `KeyValues.parse`; `none`: all), or else as planned.

    Raises `SettingError` for a policy or a setting that is not known.
    """
    if said is not None:
        return None if said == NONE else KeyValues.parse(said)
    choice = operation.kv_cache
    return None if choice is None else KeyValues.named(choice.do, choice.settings, "the plan's operation.kv_cache")


def speculation_of(operation: Operation, said: Wish | None = None) -> Wish | None:
    """How tokens are drafted: as `said` (a drafter `none`: not at all), or else as planned: by `prompt_lookup`,
    `self_draft` with `blocks` or `draft_model` with `model`, and with `tokens`, `drafts` and `rule` as in `Wish`.

    Raises `SettingError` for a drafter or a setting that is not known.
    """
    if said is not None:
        return None if said.drafter == NONE else said
    choice = operation.speculation
    return None if choice is None else _wish(choice.do, choice.settings)


def check_operation(operation: Operation) -> None:
    """Raises `SettingError` for what `cache_of` and `speculation_of` would refuse."""
    cache_of(operation)
    speculation_of(operation)


def _wish(name: str, settings: Mapping[str, Any]) -> Wish:
    where = "the plan's operation.speculation"
    if name not in _DRAFTERS:
        raise SettingError(f"{where} {name!r} is not known: give {', '.join(_DRAFTERS)}")
    needed = _DRAFTERS[name]
    known = [*filter(None, [needed]), "tokens", "drafts", "rule"]
    for key in settings:
        if key not in known:
            raise SettingError(f"{where} {name} has no setting {key!r}: it takes {', '.join(known)}")
    if needed is not None and needed not in settings:
        raise SettingError(f"{where} {name} needs {needed}")
    drafts = settings.get("drafts", Wish.drafts)
    if not isinstance(drafts, int):
        raise SettingError(f"{where} drafts={drafts!r} is not possible: give a whole number")
    value = str(settings[needed]) if needed else ""
    drafter = {"prompt_lookup": "lookup", "self_draft": f"self:{value}", "draft_model": value}[name]
    return Wish(drafter, str(settings.get("tokens", Wish.draft_tokens)), drafts, str(settings.get("rule", Wish.rule)))
