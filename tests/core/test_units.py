"""Sizes and percentages as people write them."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gossamer.core.errors import BudgetError
from gossamer.core.units import format_bytes, parse_bytes, parse_percent, parse_ratio

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(st.integers(1, 2**30), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_a_whole_number_of_units_is_exact(count: int, unit: str, space: str) -> None:
    assert parse_bytes(f"{count}{space}{unit}") == count * UNITS[unit]


@given(st.integers(1, 2**52))
def test_underscores_group_digits(count: int) -> None:
    assert parse_bytes(f"{count:_}") == count


@pytest.mark.parametrize(
    ("text", "value"), [("1.5 GB", 1_500_000_000), ("3mib", 3 * 2**20), ("2e6", 2_000_000), ("0.5KiB", 512)]
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "-3MB", "0", "3 parsecs", "MB", "nan", "inf", "1e400", "0.2", "99999 TB TB", "1e30", "3,5MB", "٣MB", "3 %"],
)
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BudgetError, match="size") as caught:
        parse_bytes(text)
    assert "\n" not in str(caught.value)


@example("0.0.0")
@given(st.text(max_size=12))
def test_any_text_gives_a_positive_size_or_a_budget_error(text: str) -> None:
    try:
        value = parse_bytes(text)
    except BudgetError:
        return
    assert 1 <= value <= 2**63


@given(st.integers(1, 999), st.sampled_from(["B", "kB", "MB", "GB", "TB"]))
def test_format_and_parse_agree_to_three_digits(count: int, unit: str) -> None:
    exact = parse_bytes(f"{count} {unit}")
    assert parse_bytes(format_bytes(exact)) == exact


@given(st.floats(0, 1e6))
def test_percent_with_and_without_its_sign(value: float) -> None:
    assert parse_percent(f"{value}%") == parse_percent(f" {value} ") == value


@pytest.mark.parametrize("text", ["", "%", "-1%", "nan", "inf", "one", "1%%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="percent"):
        parse_percent(text)


@given(st.floats(1e-6, 1))
def test_a_ratio_may_be_written_in_percent(value: float) -> None:
    assert parse_ratio(str(value)) == value
    assert math.isclose(parse_ratio(f"{min(value * 100, 100)}%"), value)


@pytest.mark.parametrize("text", ["0", "0%", "-0.1", "1.01", "101%", "nan", "a third"])
def test_a_ratio_is_above_zero_and_at_most_one(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_ratio(text)
