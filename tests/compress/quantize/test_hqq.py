"""HQQ lowers the sum of powered errors of every group below what the least-squares grid gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compress.quantize import Hqq, RoundToNearest
from gossamer.compress.quantize.grid import Grid, fit_grid
from gossamer.compress.quantize.hqq import POWER, half_quadratic
from gossamer.core.errors import ModelError, PlanError
from gossamer.core.technique import build
from gossamer.models.packed import QuantizedTensor, Scheme


def weights(seed, rows=8, columns=64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw) * (1 + 4 * (torch.rand(rows, columns, generator=draw) > 0.97))


def powered(weight, tensor, power=POWER):
    """Each group's objective, (rows, groups)."""
    error = (weight - tensor.dequantize()).reshape(*tensor.scales.shape, -1)
    return error.double().abs().pow(power).sum(-1)


@settings(max_examples=30)
@given(
    st.integers(0, 99),
    st.integers(2, 8),
    st.sampled_from([None, 16, 32]),
    st.booleans(),
    st.integers(1, 20),
    st.sampled_from([POWER, 1.0, 2.0]),
)
def test_no_group_is_worse_than_at_the_start(seed, bits, group, symmetric, iterations, power):
    weight, scheme = weights(seed), Scheme(bits, group, symmetric)
    start = fit_grid(weight, scheme, "mse")
    before = QuantizedTensor.encode(weight, scheme, start.scales, start.zeros)
    after = Hqq(bits, group, symmetric, iterations=iterations, power=power).quantize(weight, None).tensor
    assert bool((powered(weight, after, power) <= powered(weight, before, power) * (1 + 1e-5)).all())
    assert torch.equal(after.codes, QuantizedTensor.encode(weight, scheme, after.scales, after.zeros).codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_powered_errors_fall(bits, symmetric):
    weight = weights(1, 64, 128)
    before = RoundToNearest(bits, 32, symmetric).quantize(weight, None).tensor
    after = Hqq(bits, 32, symmetric, power=POWER).quantize(weight, None).tensor
    assert float(powered(weight, after).sum()) < 0.995 * float(powered(weight, before).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_symmetric_grids_are_fitted_by_least_squares_unless_told_otherwise(bits):
    weight = weights(1, 64, 128)
    squares = [
        float(powered(weight, each.quantize(weight, None).tensor, 2).sum())
        for each in (Hqq(bits, 32), RoundToNearest(bits, 32), Hqq(bits, 32, power=POWER))
    ]
    assert squares[0] < squares[1] < squares[2]


def test_one_large_error_is_given_up_for_many_small_ones():
    """Weights on a grid of step 1 but one, and a scale that is off: the true step is found in spite of the one."""
    weight = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 1.0, -1.0, -2.0, 1.45]])
    start = Grid(torch.tensor([[1.1]], dtype=torch.float16), None)
    found = half_quadratic(weight, Scheme(2), start, 20)
    least_squares = float((weight * weight.round().clamp(-2, 1)).sum() / weight.round().clamp(-2, 1).square().sum())
    assert abs(float(found.scales) - 1) < 0.5 * abs(least_squares - 1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_empty_groups_stay_exact(symmetric):
    weight = weights(2)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[0, :32] = False
    found = Hqq(3, 32, symmetric).quantize(weight * mask, None, mask).tensor.dequantize()
    assert not bool(found[~mask].any())
    assert bool(found[mask].any())


def test_the_same_input_gives_the_same_bytes_and_does_not_change():
    weight = weights(3)
    before = weight.clone()
    one, two = (Hqq(3, 32, False).quantize(weight, None).tensor for _ in range(2))
    assert torch.equal(one.packed(), two.packed())
    assert torch.equal(one.scales, two.scales)
    assert torch.equal(weight, before)


def test_bad_input_is_refused():
    assert Hqq(4).needs == "nothing"
    with pytest.raises(PlanError, match="iterations"):
        build("hqq", {"bits": 4, "iterations": 0})
    with pytest.raises(PlanError, match=r"power cannot be 1\.5"):
        build("hqq", {"bits": 4, "power": 1.5})
    with pytest.raises(PlanError, match="does not divide"):
        Hqq(4, 48).quantize(weights(0), None)
    with pytest.raises(ModelError, match="finite"):
        Hqq(4).quantize(torch.full((2, 8), torch.nan), None)
