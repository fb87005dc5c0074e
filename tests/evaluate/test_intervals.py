import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.evaluate import intervals


@given(st.integers(1, 500), st.data())
def test_wilson_holds_its_share_inside_the_unit_interval(n, data):
    k = data.draw(st.integers(0, n))
    m = intervals.wilson(k, n)
    assert 0 <= m.low <= m.value <= m.high <= 1
    assert m.low < m.high
    assert m.n == n
    mirrored = intervals.wilson(n - k, n)
    assert mirrored.low == pytest.approx(1 - m.high)


def test_wilson_matches_the_textbook():
    m = intervals.wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(m.low, 4), round(m.high, 4)) == (0.2553, 0.3662)
    m = intervals.wilson(0, 20)
    assert (m.low, round(m.high, 4)) == (0.0, 0.1611)
    with pytest.raises(ValueError, match="successes"):
        intervals.wilson(3, 2)
    with pytest.raises(ValueError, match="n >= 1"):
        intervals.wilson(0, 0)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.93])
def test_wilson_covers(share):
    random = np.random.default_rng(1)
    found = [intervals.wilson(int(k), 80) for k in random.binomial(80, share, 1000)]
    assert 0.92 <= np.mean([m.low <= share <= m.high for m in found]) <= 0.985


def test_the_bootstrap_of_a_mean_covers():
    random = np.random.default_rng(2)
    hits = []
    for _ in range(300):
        m = intervals.bootstrap_mean(random.exponential(1.0, 60), draws=400)
        hits.append(m.low <= 1.0 <= m.high)
    assert 0.88 <= np.mean(hits) <= 0.98


def test_the_bootstrap_of_a_ratio_weighs_examples_by_their_denominator():
    m = intervals.bootstrap_ratio([10.0, 1.0], [10, 2], np.exp)
    assert m.value == pytest.approx(np.exp(11 / 12))
    assert m.low == pytest.approx(np.exp(0.5))
    assert m.high == pytest.approx(np.exp(1.0))


@settings(max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.floats(-5, 5))
def test_bootstrap_moves_with_its_data(values, shift):
    base = intervals.bootstrap_mean(values, draws=100)
    moved = intervals.bootstrap_mean(np.array(values) + shift, draws=100)
    assert base.low - 1e-9 <= base.value <= base.high + 1e-9 or len(values) < 30
    assert moved.low == pytest.approx(base.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(base.high + shift, abs=1e-9)
    assert intervals.bootstrap_mean(values, draws=100) == base


def test_pairing_removes_what_both_runs_share():
    random = np.random.default_rng(3)
    hard = random.normal(0, 10, 200)
    before, after = hard, hard + random.normal(1, 0.1, 200)
    paired = intervals.paired_mean(before, after)
    assert 0.9 < paired.low < paired.high < 1.1
    ones = np.ones(200)
    same = intervals.paired_ratio((before, ones), (after, ones))
    assert same.value == pytest.approx(paired.value)
    assert same.low == pytest.approx(paired.low)
    nothing = intervals.paired_mean(before, before)
    assert (nothing.low, nothing.value, nothing.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same examples"):
        intervals.paired_mean([1.0], [1.0, 2.0])


def test_chunks_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=100)
    whole = intervals.bootstrap_mean(values, draws=300)
    monkeypatch.setattr(intervals, "_CHUNK", 1000)
    assert intervals.bootstrap_mean(values, draws=300) == whole


def test_nothing_to_divide_by():
    with pytest.raises(ValueError, match="denominators"):
        intervals.bootstrap_ratio([1.0], [0.0])


@pytest.mark.parametrize(("n", "low", "high"), [(3, 1, 3), (6, 1, 6), (10, 2, 9), (12, 3, 10), (20, 6, 15)])
def test_interval_of_a_median_ratio_lies_at_the_tabled_ranks(n, low, high):
    ratios = np.random.default_rng(0).permutation(np.arange(1, n + 1.0))
    before = np.linspace(3, 7, n)
    m = intervals.median_ratio(before, before * ratios, over="runs")
    assert (m.value, m.low, m.high, m.n) == pytest.approx(((n + 1) / 2, low, high, n))
    assert "paired runs" in m.method


def test_interval_of_a_median_ratio_covers():
    random = np.random.default_rng(2)
    found = [intervals.median_ratio(*random.lognormal(size=(2, 15))) for _ in range(1000)]
    assert 0.94 <= np.mean([m.low <= 1 <= m.high for m in found]) <= 0.99
