"""Quantities as people write them: byte sizes and percentages, in and out."""

import math
import re

from gossamer.core.errors import BudgetError

_BYTE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_NUMBER = re.compile(r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of `"3MB"` (decimal), `"3MiB"` (binary), `"1.5 GB"` or `"3_000_000"`.

    Raises `BudgetError` for anything that is not a positive, finite size.
    """
    match = _NUMBER.fullmatch(text)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in _BYTE_UNITS:
        raise BudgetError(f"size {text!r} is not understood: write a positive size such as 3MB, 512KiB or 3000000")
    value = float(match.group(1).replace("_", "")) * _BYTE_UNITS[unit]
    if not math.isfinite(value) or value < 1 or value > 2**63:
        raise BudgetError(f"size {text!r} is out of range: it must be at least 1 byte and below 8 EiB")
    return int(value)


def parse_percent(text: str) -> float:
    """Percent points of `"1%"` or `"1"` (both are 1.0). Raises `BudgetError` unless finite and not negative."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise BudgetError(f"percentage {text!r} is not understood: write a number of percent such as 1% or 0.5")
    return value


def parse_ratio(text: str) -> float:
    """A share of the 16-bit size in (0, 1], as in `"0.3"` or `"30%"`. Raises `BudgetError` outside that range."""
    try:
        value = parse_percent(text) / 100 if text.strip().endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise BudgetError(f"ratio {text!r} is out of range: it is a share of the 16-bit size, above 0 and at most 1")
    return value


def format_bytes(count: float) -> str:
    """`3.14 MB`: decimal units, three significant digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
