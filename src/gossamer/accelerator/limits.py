"""What an engine may take: area, time and energy, as people write them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite

from gossamer.core.errors import BudgetError

_UNITS = {
    "area": ("area_mm2", {"mm2": 1.0, "um2": 1e-6, "cm2": 100.0}),
    "latency": ("latency_ms", {"ms": 1.0, "us": 1e-3, "s": 1e3}),
    "energy": ("energy_mj", {"mj": 1.0, "uj": 1e-3, "j": 1e3}),
}
_PART = re.compile(r"\s*(\w+)\s*=\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]+2?)?\s*", re.IGNORECASE)
FORM = "write parts of area=40mm2,latency=5ms,energy=3mJ"


@dataclass(frozen=True)
class Limits:
    """Upper bounds, each above zero; None: none."""

    area_mm2: float | None = None
    latency_ms: float | None = None
    energy_mj: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """Those that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def excess(self, point: Mapping[str, float]) -> float:
        """The largest of value by bound, less 1; at most 0 for what keeps all bounds. Without any: 0."""
        return max((point[name] / bound for name, bound in self.given.items()), default=1.0) - 1.0


def parse_limits(text: str) -> Limits:
    """`area=40mm2,latency=5ms`; without a unit numbers are mm², ms and mJ. Empty: no limits.

    Raises:
        BudgetError: what is not understood, and the form that is.
    """
    found: dict[str, float] = {}
    for part in filter(str.strip, text.split(",")):
        match = _PART.fullmatch(part)
        name = match.group(1).lower() if match else ""
        if match is None or name not in _UNITS:
            raise BudgetError(f"budget {part.strip()!r} is not understood: {FORM}")
        field, units = _UNITS[name]
        unit = (match.group(3) or next(iter(units))).lower()
        if unit not in units:
            raise BudgetError(f"budget {part.strip()!r}: unit {match.group(3)} of {name} is none of {', '.join(units)}")
        if field in found:
            raise BudgetError(f"budget gives {name} twice: {FORM}")
        try:
            value = float(match.group(2)) * units[unit]
        except ValueError:
            value = 0.0
        if not (isfinite(value) and value > 0):
            raise BudgetError(f"budget {part.strip()!r}: a number above zero is needed")
        found[field] = value
    return Limits(**found)
