"""Which layers a path pattern selects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.core.errors import PlanError
from gossamer.core.paths import compile_pattern, matches

SEGMENT = st.from_regex(r"[a-z_][a-z0-9_]{0,6}|[0-9]{1,2}", fullmatch=True)
PATH = st.lists(SEGMENT, min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "path", "selected"),
    [
        ("language.blocks.3.mlp.up_proj", "language.blocks.3.mlp.up_proj", True),
        ("language.blocks.3", "language.blocks.3.mlp.up_proj", True),
        ("language.blocks.3", "language.blocks.30.mlp.up_proj", False),
        ("vision.blocks.*", "vision.blocks.0.self_attn.q_proj", True),
        ("vision.blocks.*", "vision.patch_embedding", False),
        ("*.blocks.0", "language.blocks.0.mlp.up_proj", True),
        ("*.mlp", "language.blocks.0.mlp", False),
        ("**.mlp", "language.blocks.0.mlp.up_proj", True),
        ("language.blocks.{0,5-7}.*", "language.blocks.6.mlp", True),
        ("language.blocks.{0,5-7}.*", "language.blocks.4.mlp", False),
        ("language.blocks.{0,5-7}.*", "language.blocks.60.mlp", False),
        ("{vision,language}.**", "language.blocks.0.mlp", True),
        ("{vision,language}.**", "projector.linear_1", False),
        ("language.**", "language", False),
        ("**", "head.lm_head", True),
    ],
)
def test_selection(pattern: str, path: str, selected: bool) -> None:
    assert matches(pattern, path) is selected


@given(PATH)
def test_a_path_selects_itself_and_its_descendants_only(path: str) -> None:
    assert matches(path, path)
    assert matches(path, path + ".weight")
    assert not matches(path, path + "x")
    assert not matches(path, "x" + path)


@given(PATH, st.data())
def test_a_star_stands_for_any_one_segment(path: str, data: st.DataObject) -> None:
    segments = path.split(".")
    at = data.draw(st.integers(0, len(segments) - 1))
    assert matches(".".join([*segments[:at], "*", *segments[at + 1 :]]), path)


@given(PATH, PATH)
def test_special_characters_of_regular_expressions_are_plain_text(one: str, other: str) -> None:
    assert matches(one, other) == (one == other or other.startswith(one + "."))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_range_holds_its_ends_and_what_lies_between(low: int, high: int, number: int) -> None:
    low, high = sorted((low, high))
    assert matches(f"language.blocks.{{{low}-{high}}}", f"language.blocks.{number}.mlp") == (low <= number <= high)


@pytest.mark.parametrize("pattern", ["", "  ", "a.{0,1", "a.0}", "a.{}"])
def test_malformed_patterns_are_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(PlanError, match="pattern"):
        compile_pattern(pattern)
