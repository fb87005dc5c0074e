"""The baselines do what their papers say of them, faults included."""

import numpy as np
import pytest
from scipy.special import erf

from gossamer.accelerator.golden.baselines import (
    BASELINES,
    newton_root,
    octave_softmax,
    polynomial_exponential,
    polynomial_gelu,
    shift_exponential,
    shift_gelu,
)


def test_the_polynomial_exponential_is_as_near_as_published() -> None:
    scale = 2.0**-12
    x = np.arange(-20 << 12, 1)
    out = polynomial_exponential(x, scale)
    assert 1.5e-3 < np.abs(out.integers * out.scale - np.exp(x * scale)).max() < 2.5e-3


def test_the_polynomial_gelu_is_as_near_as_published() -> None:
    scale = 2.0**-18
    x = np.arange(-8 << 18, 8 << 18, 97)
    out, real = polynomial_gelu(x, scale), x * scale
    error = np.abs(out.integers * out.scale - real * 0.5 * (1 + erf(real / np.sqrt(2)))).max()
    assert 0.0175 < error < 0.0187


def test_the_shift_exponential_errs_by_its_two_lines() -> None:
    scale = 2.0**-12
    x = np.arange(-10 << 12, 1)
    out = shift_exponential(x, scale)
    assert 0.04 < np.abs(out.integers * out.scale - np.exp(x * scale)).max() < 0.05


def test_the_shift_gelu_breaks_where_its_exponentials_underflow() -> None:
    def worst(highest: float) -> float:
        scale = highest / 127
        x = np.arange(-127, 128)
        out = shift_gelu(x, scale)
        return float(np.abs(out.integers * out.scale - x * scale / (1 + np.exp(-1.702 * x * scale))).max())

    assert worst(4.0) < 0.3
    assert worst(16.0) > 5


def test_ten_newton_steps_from_two_to_the_sixteen_are_too_few_for_small_numbers() -> None:
    variance = np.array([1000, 1 << 16, 10**8])
    assert newton_root(variance).tolist() == [68, 256, 10000]
    assert newton_root(variance, steps=40)[0] == 31


@pytest.mark.parametrize("name", list(BASELINES))
def test_probabilities_are_in_range_and_fall_with_their_logits(name: str) -> None:
    x = np.random.default_rng(0).integers(-127, 128, (20, 50))
    out = BASELINES[name].softmax(x, 4 / 127)
    p = out.integers * out.scale
    assert (p >= 0).all()
    assert (p.sum(1) <= 1.01).all()
    assert (p.sum(1) > 0.3).all()
    falling = np.take_along_axis(p, np.argsort(-x, 1), 1)
    assert (np.diff(falling, axis=1) <= 1e-2).all()  # I-ViT's second line ends above where the first begins


def test_the_octave_softmax_is_exact_on_whole_octaves() -> None:
    x = np.array([[0, -1, -2, -2]])  # 1/2, 1/4, 1/8, 1/8
    out = octave_softmax(x, float(np.log(2)))
    assert np.abs(out.integers * out.scale - [0.5, 0.25, 0.125, 0.125]).max() < 1 / 255
    rising = octave_softmax(x[:, ::-1], float(np.log(2)), chunk=1)  # the sum is corrected as the maximum grows
    assert (rising.integers[:, ::-1] == out.integers).all()


@pytest.mark.parametrize("name", ["I-BERT", "I-ViT"])
def test_layer_norms_of_large_rows_are_near(name: str) -> None:
    norm = BASELINES[name].layer_norm
    assert norm is not None
    x = np.rint(np.random.default_rng(0).normal(500, 2000, (8, 768))).astype(np.int64)
    out = norm(x)
    exact = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    assert np.abs(out.integers * out.scale - exact).max() < 0.01
