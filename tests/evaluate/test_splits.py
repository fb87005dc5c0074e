"""Parts of a data set: disjoint, seeded, and the first can be drawn again alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.core.errors import DataError
from gossamer.evaluate.splits import draw


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_parts_are_disjoint_sorted_and_complete(a, b, spare, seed):
    about = range(a + b + spare)
    parts = draw(about, {"a": a, "b": b}, seed)
    assert [len(parts["a"]), len(parts["b"])] == [a, b]
    assert not set(parts["a"]) & set(parts["b"])
    assert all(part == sorted(part) for part in parts.values())
    assert all(index in about for part in parts.values() for index in part)
    assert draw(about, {"a": a}, seed)["a"] == parts["a"]


@given(st.lists(st.integers(0, 12), min_size=30, max_size=60), st.integers(1, 8), st.integers(1, 8), st.integers(0, 5))
def test_no_source_is_in_two_parts_and_a_spread_part_has_many(about, a, b, seed):
    try:
        parts = draw(about, {"a": a, "b": b}, seed, spread=("a",))
    except DataError:
        return
    assert [len(parts["a"]), len(parts["b"])] == [a, b]
    first, second = ({about[i] for i in parts[name]} for name in "ab")
    assert not first & second
    assert len(first) == min(a, max(1, len(set(about)) // 3))
    assert draw(about, {"a": a}, seed, spread=("a",))["a"] == parts["a"]


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match="5 examples and 7 are needed"):
        draw(range(5), {"calibrate": 3, "guard": 4}, 0)
    with pytest.raises(DataError, match="no picture or text in two parts"):
        draw([0, 0, 0, 0], {"a": 2, "b": 2}, 0)
