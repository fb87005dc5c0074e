"""Parts of a data set: disjoint, seeded, and the first can be drawn again alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.core.errors import DataError
from gossamer.evaluate.splits import draw


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_parts_are_disjoint_sorted_and_complete(a, b, spare, seed):
    parts = draw(a + b + spare, {"a": a, "b": b}, seed)
    assert [len(parts["a"]), len(parts["b"])] == [a, b]
    assert not set(parts["a"]) & set(parts["b"])
    assert all(part == sorted(part) for part in parts.values())
    assert all(0 <= index < a + b + spare for part in parts.values() for index in part)
    assert draw(a + b + spare, {"a": a}, seed)["a"] == parts["a"]


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match="5 examples and 7 are needed"):
        draw(5, {"calibrate": 3, "guard": 4}, 0)
