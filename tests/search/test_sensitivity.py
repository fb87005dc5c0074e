"""Inferring the divergence of choices that were not measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.search.sensitivity import inferred

POSITIVE = st.floats(1e-6, 1e3)


@given(POSITIVE, POSITIVE, st.floats(1.01, 100), st.floats(1.01, 100))
def test_passes_through_both_anchors_and_rises(error, kl, wider, worse):
    anchors = [(error, kl), (error * wider, kl * worse)]
    assert inferred(error, anchors) == pytest.approx(kl)
    assert inferred(error * wider, anchors) == pytest.approx(kl * worse, rel=1e-6)
    assert inferred(error / 2, anchors) < kl < inferred(error * wider * 2, anchors)


@given(POSITIVE, POSITIVE)
def test_one_anchor_is_proportional(error, kl):
    assert inferred(error / 4, [(error, kl)]) == pytest.approx(kl / 4)


def test_anchors_that_do_not_rise_fall_back_to_the_larger_error():
    assert inferred(1.0, [(1.0, 0.5), (2.0, 0.4)]) == pytest.approx(0.2)
