"""The golden arithmetic against exact and floating-point mathematics, within the bounds that the design promises."""

from fractions import Fraction
from math import floor, isclose, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossamer.accelerator.golden.arithmetic import (
    EXPONENTIALS,
    FADED,
    NORM_FRACTION,
    OCTAVE,
    OCTAVE_BITS,
    SCORE_HIGH,
    SCORE_LOW,
    Softmax,
    average,
    dyadic,
    inverse_root,
    normalise,
    reciprocal,
    requantise,
    rotate,
    rounding_shift,
    saturate,
    scale_norm,
    settle,
)

CHUNK = 8
Floats = NDArray[np.float64]


def of(value: int) -> NDArray[np.int64]:
    return np.array([value], np.int64)


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)


@given(signed(33), st.integers(0, 65535), st.integers(0, 47))
def test_requantisation_is_exact_rounding_half_up(x: int, multiplier: int, shift: int) -> None:
    assert requantise(of(x), multiplier, shift)[0] == floor(Fraction(x * multiplier, 1 << shift) + Fraction(1, 2))


@given(signed(53), st.integers(0, 47))
def test_a_rounding_shift_is_half_the_next_shift_plus_one(x: int, shift: int) -> None:
    """How the RTL does it."""
    assert rounding_shift(of(x), shift)[0] == ((2 * x >> shift) + 1) >> 1


@given(signed(50), st.integers(2, 32))
def test_saturation_is_the_nearest_number_in_range(x: int, bits: int) -> None:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    assert saturate(of(x), bits)[0] == sorted((low, x, high))[1]


@given(st.floats(2.0**-31, 2.0**15))
def test_dyadic_numbers_are_within_a_part_in_two_to_the_sixteen(scale: float) -> None:
    multiplier, shift = dyadic(scale)
    assert 1 << 15 <= multiplier < 1 << 16
    assert 0 <= shift <= 47
    assert abs(Fraction(multiplier, 1 << shift) / Fraction(scale) - 1) <= Fraction(1, 1 << 16)


def test_dyadic_at_its_ends() -> None:
    assert dyadic(0.0)[0] == dyadic(2.0**-40)[0] == 0
    assert dyadic(1.0) == (1 << 15, 15)
    assert dyadic(1 - 2.0**-20) == (1 << 15, 15)  # rounds up to a power of two
    with pytest.raises(ValueError, match="too large"):
        dyadic(2.0**17)


@given(st.integers(0, (1 << 31) - 1))
def test_the_reciprocal_is_the_largest_below(total: int) -> None:
    (inverse,), (place,) = reciprocal(of(total))
    total = max(total, 1)
    assert 1 << int(place) <= total < 2 << int(place)
    assert 1 << 15 <= inverse < 1 << 16
    assert inverse * total < 1 << int(place) + 16 <= (inverse + 1) * total + (inverse == 65535) * total
    assert isclose(inverse / 2.0 ** (place + 16), 1 / total, rel_tol=2.0**-15)


@given(st.integers(0, (1 << 60) - 1))
def test_the_inverse_root_is_within_a_ten_thousandth(variance: int) -> None:
    (root,), (half,) = inverse_root(of(variance))
    assert root + 2 >= 1 << 15
    assert root < 1 << 16
    assert isclose(root / 2.0 ** (31 + half), 1 / sqrt(max(variance, 1)), rel_tol=1e-4)


def test_the_inverse_root_for_every_leading_sixteen_bits() -> None:
    x = np.arange(1 << 14, 1 << 16)
    root, half = inverse_root(x << 20)
    np.testing.assert_allclose(root / 2.0 ** (31 + half), 1 / np.sqrt((x + 0.0) * 2.0**20), rtol=1e-4)


def test_exponentials_are_within_half_a_step() -> None:
    exact = 255 * 2.0 ** (-np.arange(OCTAVE) / OCTAVE)
    assert np.abs(EXPONENTIALS - exact).max() <= 0.5
    assert 255 * 2.0**-FADED < 0.5 <= 255 * 2.0 ** (1 - FADED)  # what has faded would round to 0


@given(st.integers(SCORE_LOW, SCORE_HIGH), st.integers(0, 12 * OCTAVE))
def test_an_exponential_is_a_power_of_two_of_the_distance(score: int, distance: int) -> None:
    """Against the maximum's octave; rounded twice, so within a step."""
    softmax = Softmax.start(1)
    second = max(score - distance, SCORE_LOW)
    first, other = softmax.exponentials(np.array([[score, second]]), np.ones((1, 2), bool))[0]
    assert softmax.maximum[0] % OCTAVE == 0
    assert 0 <= softmax.maximum[0] - score < OCTAVE
    for value, at in ((first, score), (other, second)):
        assert abs(value - 255 * 2.0 ** ((at - softmax.maximum[0]) / OCTAVE)) < 1


def streamed(scores: NDArray[np.int64], valid: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Settled exponentials (R, S) and their sums, a chunk at a time as the engine does it."""
    softmax = Softmax.start(len(scores))
    starts = range(0, scores.shape[1], CHUNK)
    parts = [softmax.exponentials(scores[:, k : k + CHUNK], valid[:, k : k + CHUNK]) for k in starts]
    last = softmax.maximum >> OCTAVE_BITS
    settled = [settle(part, octave, last) for part, octave in zip(parts, softmax.octaves, strict=True)]
    whole = np.concatenate(settled, axis=1)
    return whole, whole.sum(1)


def probabilities(logits: Floats, valid: NDArray[np.bool_]) -> Floats:
    """Softmax in floats, of what is valid."""
    logits = np.where(valid, logits, -np.inf)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("length", "sigma", "bound"), [(197, 1, 0.02), (64, 1, 0.02), (197, 4, 0.04), (1024, 1, 0.03)])
def test_the_softmax_is_near_the_float_one(length: int, sigma: float, bound: float) -> None:
    """Sum of absolute errors of a row's probabilities, which sum to one, on average over 256 rows."""
    random = np.random.default_rng(0)
    logits = random.normal(0, sigma, (256, length))
    everywhere = np.ones(logits.shape, bool)
    scores = np.rint(logits * np.log2(np.e) * OCTAVE).astype(np.int64)
    powers, total = streamed(scores, everywhere)
    error = np.abs(powers / total[:, None] - probabilities(logits, everywhere)).sum(1)
    assert error.mean() <= bound


@given(st.integers(1, 60), st.integers(0, 1 << 32), st.booleans())
def test_a_masked_softmax_attends_to_nothing_masked(length: int, seed: int, rising: bool) -> None:
    """Rising scores move the maximum in every chunk; columns past a row's limit count for nothing."""
    random = np.random.default_rng(seed)
    scores = random.integers(-2000, 2000, (4, length)) + rising * 300 * np.arange(length)
    valid = np.arange(length) < random.integers(1, length + 1, 4)[:, None]
    powers, total = streamed(scores, valid)
    assert (powers[~valid] == 0).all()
    assert (total >= 127).all()  # the largest score itself, less than an octave below the maximum
    error = np.abs(powers / total[:, None] - probabilities(scores / OCTAVE * np.log(2), valid)).sum(1)
    assert (error <= (valid.sum(1) * 1.5 + 2) / 127).all()


@given(st.integers(0, 1 << 32), st.integers(0, 7))
def test_the_average_is_within_a_step_of_the_exact_one(seed: int, gain: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.integers(0, 256, (3, 40))
    weights[:, 0] += weights.sum(1) == 0
    values = random.integers(-128, 128, (40, 5)) >> gain  # small values are what doublings are for
    weighted, total = weights @ values, weights.sum(1)
    exact = np.clip(weighted / total[:, None] * 2.0**gain, -128, 127)
    assert np.abs(average(weighted, total, gain) - exact).max() <= 0.5 + 128 * 2.0**-15


@given(st.integers(0, 1 << 32))
def test_a_rotation_turns_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    angle = random.uniform(-np.pi, np.pi, 16)
    table = np.empty((1, 32), np.int64)
    table[0, 0::2], table[0, 1::2] = np.rint(127 * np.cos(angle)), np.rint(127 * np.sin(angle))
    pairs = random.integers(-8000, 8000, (4, 32))
    shift = 14
    turned = (pairs[:, 0::2] + 1j * pairs[:, 1::2]) * (table[0, 0::2] + 1j * table[0, 1::2]) / 2.0**shift
    out = rotate(pairs, table, shift)
    assert np.abs(out[:, 0::2] - turned.real.clip(-128, 127)).max() <= 0.5
    assert np.abs(out[:, 1::2] - turned.imag.clip(-128, 127)).max() <= 0.5


@pytest.mark.parametrize("width", [64, 384, 768, 4096])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("spread", [40.0, 3000.0])
def test_norms_are_within_two_thousandths(width: int, centred: bool, spread: float) -> None:
    random = np.random.default_rng(1)
    rows = np.rint(random.normal(200 if centred else 0, spread, (64, width))).clip(-32768, 32767).astype(np.int64)
    epsilon = 5 * width * width  # 5 in the rows' own variance
    moved = rows - rows.mean(1, keepdims=True) if centred else rows
    exact = moved / np.sqrt((moved * moved).mean(1, keepdims=True) + 5)
    normal = normalise(rows, epsilon, centred)
    assert np.abs(normal / 2.0**NORM_FRACTION - exact).max() <= 0.002


@given(st.integers(0, 1 << 32), st.booleans())
def test_norms_of_any_rows_stay_in_range_and_near(seed: int, centred: bool) -> None:
    """Rows of any size and mean, also such as are constant."""
    random = np.random.default_rng(seed)
    width = int(random.integers(1, 100))
    size = 2 ** random.uniform(0, 14)
    rows = np.rint(random.normal(random.normal(0, size), random.choice([0, 1, size]), (1, width))).astype(np.int64)
    rows = rows.clip(-32768, 32767)
    normal = normalise(rows, 0, centred) / 2.0**NORM_FRACTION
    moved = rows - rows.mean() if centred else rows
    spread = np.sqrt((moved * moved).mean())
    exact = moved / spread if spread > 0 else 0 * moved
    assert np.abs(normal - exact).max() <= 0.0003 + 1.5e-4 * np.abs(exact).max()


@given(signed(20), signed(16), signed(32), st.integers(0, 37), st.sampled_from([8, 16]))
def test_gain_and_offset_are_exact_before_one_rounding(x: int, gain: int, offset: int, shift: int, bits: int) -> None:
    exact = floor(Fraction(x * gain + offset, 1 << shift) + Fraction(1, 2))
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    assert scale_norm(of(x), of(gain), of(offset), shift, bits)[0] == min(max(exact, low), high)
